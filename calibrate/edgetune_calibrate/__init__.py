"""Calibration: choose samples, capture what the layers see, solve int4 weights for every format."""
