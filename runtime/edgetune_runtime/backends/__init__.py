"""Inference engines behind one checked base, and the choice of one for a bundle.

An engine is imported only when a bundle of its format is loaded, and its libraries when it loads.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from edgetune_runtime.backends.base import (
    DEVICES,
    Arrays,
    Backend,
    Device,
    Float,
    GreedyBackend,
    ImageFeatures,
    Int,
    ModelShape,
)
from edgetune_runtime.errors import BundleError, InputError, MissingDependency
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

ENGINES = "edgetune.backends"
"""Entry-point group of engines from other distributions: NAME = a subclass of `Backend`."""

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
    return backend


def _named(name: str, bundle: Bundle) -> type[Backend]:
    """The installed engine of this name."""
    found = {point.name: point for point in entry_points(group=ENGINES)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise InputError(f"unknown engine {name!r}", hint=f"installed beside the runtime's own: {known}")
    kind = _imported(found[name])
    if bundle.format not in kind.formats:
        raise InputError(
            f"{bundle.folder}: the engine {name} does not read format {bundle.format!r}",
            hint=f"export --format {' or '.join(kind.formats)}",
        )
    return kind


def _claiming(bundle: Bundle) -> type[Backend]:
    """The first engine that reads the bundle's format."""
    for place in _OWN:
        module, _, name = place.partition(":")
        kind: type[Backend] = getattr(import_module(f"edgetune_runtime.backends.{module}"), name)
        if bundle.format in kind.formats:
            return kind
    missing: list[MissingDependency] = []
    for point in entry_points(group=ENGINES):
        try:
            kind = _imported(point)
        except MissingDependency as error:  # another one may read the format
            missing.append(error)
            continue
        if bundle.format in kind.formats:
            return kind
    raise InputError(
        f"{bundle.folder}: no engine here reads format {bundle.format!r}",
        hint="; ".join(map(str, missing)) or "install an engine for it, or export to another format",
    )


def _imported(point: EntryPoint) -> type[Backend]:
    """The class that an entry point names."""
    try:
        kind = point.load()
    except (ImportError, AttributeError) as error:  # a module or its class is not there
        raise MissingDependency(f"the engine {point.name} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Backend)):
        raise InputError(f"the engine {point.name} ({point.value}) is not a subclass of edgetune_runtime.Backend")
    return kind


def _check_shape(bundle: Bundle, shape: ModelShape) -> None:
    """Compare what was loaded with what the manifest says: other numbers would answer, and wrongly."""
    for name, said in bundle.model.items():
        if said != getattr(shape, name):
            raise BundleError(
                f"{bundle.folder}: model.{name} is {said} in the manifest, but the model has {getattr(shape, name)}",
                hint="export the bundle again",
            )
    pixels = bundle.spec.patch_values
    if None not in (pixels, shape.pixels) and pixels != shape.pixels:
        raise BundleError(
            f"{bundle.folder}: image.patch_size and temporal_patch_size make patches of {pixels} values, but the "
            f"vision encoder takes {shape.pixels}",
            hint="export the bundle again",
        )
