"""Inference engines behind one checked base, and the choice of one for a bundle.

An engine is imported only when a bundle of its format is loaded, and its libraries when it loads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgetune_runtime.backends.base import Backend, GreedyBackend
from edgetune_runtime.backends.values import DEVICES, Arrays, Device, Float, ImageFeatures, Int, ModelShape
from edgetune_runtime.errors import BundleError, InputError, MissingDependency
from edgetune_runtime.plugins import Plugins
from edgetune_runtime.threads import check_threads

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

__all__ = [
    "DEVICES",
    "ENGINES",
    "Arrays",
    "Backend",
    "Device",
    "Float",
    "GreedyBackend",
    "ImageFeatures",
    "Int",
    "ModelShape",
    "load_backend",
]

ENGINES: Plugins[type[Backend]] = Plugins(
    "edgetune.backends",
    "engine",
    "a subclass of edgetune_runtime.Backend",
    lambda kind: isinstance(kind, type) and issubclass(kind, Backend),
)
"""Engines of installed packages, and ours under torch; the runtime's other engines have no names."""

_OWN = ("onnx.engine:OnnxBackend", "onnx.packed:PackedBackend", "trt.engine:TrtBackend")
"""The runtime's own engines, which come before installed ones for the formats that they claim."""


def load_backend(
    bundle: Bundle, *, device: str = "cpu", threads: int | None = None, engine: str | None = None
) -> Backend:
    """Load an engine for a bundle.

    Args:
        bundle: what to run.
        device: "cpu", "cuda", or one of several GPUs such as "cuda:1".
        threads: CPU threads; None leaves the choice to the engine.
        engine: an installed engine by its name in the entry-point group `edgetune.backends`; None is the first that
            claims the bundle's format, the runtime's own before installed ones.

    Raises:
        InputError: the device name or the thread count makes no sense, no engine has this name or reads the format, or
            the bundle does not compute in what the device's kernels need.
        BundleError: the loaded model has other sizes than the manifest says.
        MissingDependency: the engine, or its provider for the device, is not installed.
    """
    Device.parse(device)
    check_threads(threads)
    kind = _named(engine, bundle) if engine is not None else _claiming(bundle)
    backend = kind.load(bundle, device=device, threads=threads)
    _check_shape(bundle, backend.shape)
    if bundle.grammar is not None:
        backend.answer_tokens = bundle.grammar.tokens
    return backend


def _named(name: str, bundle: Bundle) -> type[Backend]:
    """The installed engine of this name."""
    kind = ENGINES.load(name)
    if bundle.format not in kind.formats:
        raise InputError(
            f"{bundle.folder}: the engine {name} does not read format {bundle.format!r}",
            hint=f"export --format {' or '.join(kind.formats)}",
        )
    return kind


def _claiming(bundle: Bundle) -> type[Backend]:
    """The first engine that reads the bundle's format."""
    for place in _OWN:
        module, _, own = place.partition(":")
        kind: type[Backend] = getattr(import_module(f"edgetune_runtime.backends.{module}"), own)
        if bundle.format in kind.formats:
            return kind
    missing: list[MissingDependency] = []
    for name in ENGINES.names():
        try:
            kind = ENGINES.load(name)
        except MissingDependency as error:  # another one may read the format
            missing.append(error)
            continue
        if bundle.format in kind.formats:
            return kind
    raise InputError(
        f"{bundle.folder}: no engine here reads format {bundle.format!r}",
        hint="; ".join(map(str, missing)) or "install an engine for it, or export to another format",
    )


def _check_shape(bundle: Bundle, shape: ModelShape) -> None:
    """Compare what was loaded with what the manifest says: other numbers would answer, and wrongly."""
    for name, said in bundle.model.items():
        if said != getattr(shape, name):
            raise BundleError(
                f"{bundle.folder}: model.{name} is {said} in the manifest, but the model has {getattr(shape, name)}",
                hint="export the bundle again",
            )
    pixels = bundle.spec.patch_values
    if pixels is not None and shape.raw_pixels:
        pixels //= bundle.spec.frames  # the encoder repeats them
    if None not in (pixels, shape.pixels) and pixels != shape.pixels:
        raise BundleError(
            f"{bundle.folder}: image.patch_size and temporal_patch_size make patches of {pixels} values, but the "
            f"vision encoder takes {shape.pixels}",
            hint="export the bundle again",
        )
