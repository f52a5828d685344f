"""Bundles of ONNX graphs, and packed GPTQ, AWQ and compressed-tensors weights, on onnxruntime."""
