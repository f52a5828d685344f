"""Checkpoint to bundle: one module a format, and the graphs they share.

formats.py      the formats by name; options.py: what a user chooses
job.py          what every exporter works with; describe.py: the manifest's fields
checkpoint.py   load and examine a Hugging Face checkpoint
onnx_bundle.py, packed_bundle.py, trt_bundle.py: the formats; hf_checkpoint.py: the checkpoint inside of a packed one
decoder/        the decoder's graph, written by ourselves, in the operators of each dialect, and its weights
vision/         the exportable vision tower, its graph, and what int8 makes of it
check/          what transformers answers, and the self-checks against it
"""
