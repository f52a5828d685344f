"""Run edgetune bundles: images and phrases in, boxes and answers out.

Importing this package loads nothing heavy; `Session` and `Detection` are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetune_runtime._version import __version__

if TYPE_CHECKING:
    from edgetune_runtime.codec.grounding import Detection as Detection
    from edgetune_runtime.session import Session as Session

__all__ = ["Detection", "Session", "__version__"]

_HOME = {"Detection": "edgetune_runtime.codec.grounding", "Session": "edgetune_runtime.session"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
