"""Which TensorRT is installed: the one of servers and Jetson boards, or TensorRT for RTX, with one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgetune_runtime.errors import InputError, MissingDependency

if TYPE_CHECKING:
    import tensorrt

LIBRARIES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Flavours, and the modules that a flavour goes by in its packages."""

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

_RTX_LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
"""Importing this package makes the shared libraries known that `tensorrt_rtx_bindings` alone does not bring."""


@dataclass(frozen=True)
class Library:
    """An imported TensorRT: its flavour, module and version."""

    flavour: str
    module: Any
    version: str

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{TITLES[self.flavour]} {self.version}"


def installed() -> Iterator[Library]:
    """Every flavour that can be imported, TensorRT first."""
    for flavour in LIBRARIES:
        module = _module(flavour)
        if module is not None:
            yield Library(flavour, module, str(module.__version__))


def load_library(flavour: str | None = None) -> Library:
    """Import a flavour, or the first one that is installed.

    Raises:
        InputError: no such flavour.
        MissingDependency: it is not installed.
    """
    if flavour is not None and flavour not in LIBRARIES:
        raise InputError(f"unknown library {flavour!r}", hint=f"choose one of: {', '.join(LIBRARIES)}")
    for library in installed():
        if flavour in (None, library.flavour):
            return library
    name = "neither TensorRT nor TensorRT-RTX" if flavour is None else f"{TITLES[flavour]}"
    raise MissingDependency(
        f"{name} is {'' if flavour is None else 'not '}installed for this Python",
        hint="TensorRT comes with JetPack (apt install python3-libnvinfer) or from NVIDIA's package index",
    )


def _module(flavour: str) -> Any:
    if flavour == "tensorrt_rtx":
        with suppress(ImportError):
            import_module(_RTX_LIBRARIES)
    for name in LIBRARIES[flavour]:
        with suppress(ImportError, OSError):  # OSError: bindings without their shared libraries
            return import_module(name)
    return None


def make_logger(module: Any) -> tuple[tensorrt.ILogger, list[str]]:
    """A logger for TensorRT objects, and the list in which it keeps the errors."""
    errors: list[str] = []

    class Logger(module.ILogger):  # type: ignore[misc]
        """Keeps errors, drops the rest."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Logger(), errors
