"""Checkpoint to bundle: one module a format, and the graphs they share.

checkpoint.py   load and examine a Hugging Face checkpoint
vision.py       the exportable vision tower; embed.py, decoder.py: graphs written by ourselves
dialects/       operator vocabularies of the decoder
quant.py        round-to-nearest weights
onnx_bundle.py  format "onnx"
parity.py       the self-check against transformers
"""
