"""The version of both distributions, `edgetune` and `edgetune-runtime`: they are built and released together."""

__version__ = "0.1.0"
