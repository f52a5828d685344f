"""Run edgetune bundles: images and phrases in, boxes and answers out.

Importing this package loads nothing heavy; what it exports is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetune_runtime._version import __version__

if TYPE_CHECKING:
    from edgetune_runtime.answer import Answer as Answer
    from edgetune_runtime.answer import Detection as Detection
    from edgetune_runtime.answer import Stream as Stream
    from edgetune_runtime.backends.base import Backend as Backend
    from edgetune_runtime.bundle import Bundle as Bundle
    from edgetune_runtime.draw import draw_detections as draw_detections
    from edgetune_runtime.errors import BundleError as BundleError
    from edgetune_runtime.errors import Cancelled as Cancelled
    from edgetune_runtime.errors import EdgetuneError as EdgetuneError
    from edgetune_runtime.errors import ImageError as ImageError
    from edgetune_runtime.errors import InputError as InputError
    from edgetune_runtime.errors import MissingDependency as MissingDependency
    from edgetune_runtime.session import Session as Session

_HOME = {
    "Answer": "answer",
    "Backend": "backends.base",
    "Bundle": "bundle",
    "BundleError": "errors",
    "Cancelled": "errors",
    "Detection": "answer",
    "EdgetuneError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "MissingDependency": "errors",
    "Session": "session",
    "Stream": "answer",
    "draw_detections": "draw",
}

__all__ = [
    "Answer",
    "Backend",
    "Bundle",
    "BundleError",
    "Cancelled",
    "Detection",
    "EdgetuneError",
    "ImageError",
    "InputError",
    "MissingDependency",
    "Session",
    "Stream",
    "__version__",
    "draw_detections",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
