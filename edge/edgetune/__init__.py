"""Edgetune: the command line, the exporters, and the contract that stages share on disk."""

from edgetune_runtime._version import __version__

__all__ = ["__version__"]
