"""Checkpoint to bundle: one module a format, and the graphs they share.

formats.py      the formats by name; job.py: what every exporter works with, describe.py: the manifest's fields
checkpoint.py   load and examine a Hugging Face checkpoint
weights.py      the decoder's weights, the checkpoint's or a weight set's; dequantize.py: the same in transformers
vision.py       the exportable vision tower; embed.py, decoder.py: graphs written by ourselves
dialects/       operator vocabularies of the decoder
onnx_bundle.py  format "onnx"
reference.py    what transformers answers; parity.py, drift.py: the self-check against it
"""
