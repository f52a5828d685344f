"""Vision encoders under OpenVINO, which multiplies in bfloat16 where a CPU can; the decoder stays with onnxruntime."""
