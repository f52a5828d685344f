"""The Python API: one function a verb, with its options; `edgetune` gives them by name."""
