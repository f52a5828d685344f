"""Measure models on the same records, one process each: shared by `edgetune bench` and `edgetune-run bench`.

Needs no more than the runtime itself, so a device writes the same figures as a desk.
"""
