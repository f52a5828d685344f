"""Inference engines behind one protocol. A module is imported only when a bundle of its format is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.threads import check_threads

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision encoder makes of an image: float32 [tokens, H] each.

    Attributes:
        embeddings: stand in for the image tokens' embeddings.
        deepstack: added after the first decoder layers, one array a layer.
    """

    embeddings: Float
    deepstack: tuple[Float, ...]


class Backend(Protocol):
    """One loaded model and one sequence in its KV cache."""

    def encode_images(self, pixel_values: Float, grids: Int) -> ImageFeatures:
        """Run the vision encoder on packed patches float32 [P, C] of images with grids int64 [N, 3]."""

    def embed(self, token_ids: Int) -> Float:
        """Embeddings float32 [S, H] of token ids int64 [S]."""

    def reserve(self, length: int) -> None:
        """Start an empty sequence with room for `length` tokens."""

    def forward(self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = ()) -> Float:
        """Append tokens to the sequence and return the logits of the last one.

        Args:
            embeddings: float32 [S, H].
            positions: int64 [3, S].
            deepstack: float32 [S, H] for each DeepStack layer; none means zeros (no image among the tokens).

        Returns:
            float32 [V]; valid until the next call.
        """


@runtime_checkable
class GreedyBackend(Backend, Protocol):
    """A backend that also chooses tokens, so that logits need not leave its device."""

    def greedy(self, token: int, position: int, *, count: int, stop: Collection[int]) -> list[int]:
        """Append `token` at a position (on all three axes) and the most likely tokens after it, the last one excepted.

        Returns:
            At most `count` tokens, up to and including the first of `stop`; at least one.
        """


ENGINES = "edgetune.backends"
"""Entry-point group of engines from other distributions: NAME = callable(bundle, device=, threads=) -> Backend."""


def load_backend(
    bundle: Bundle, *, device: str = "cpu", threads: int | None = None, engine: str | None = None
) -> Backend:
    """Load an engine for a bundle.

    Args:
        bundle: what to run.
        device: "cpu" or "cuda".
        threads: CPU threads; None leaves the choice to the engine.
        engine: an installed engine by its name in the entry-point group `edgetune.backends`; None is the runtime's own
            for the bundle's format.

    Raises:
        InputError: the device name or the thread count makes no sense, no engine has this name or reads the format, or
            the bundle does not compute in what the device's kernels need.
        MissingDependency: the engine, or its provider for the device, is not installed.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}", hint=f"choose one of: {', '.join(DEVICES)}")
    check_threads(threads)
    if engine is not None:
        return _installed(engine)(bundle, device=device, threads=threads)
    if bundle.format not in _BUILT_IN:
        raise InputError(f"{bundle.folder}: this version has no backend for format {bundle.format!r}")
    module = import_module(f"edgetune_runtime.backends.{_BUILT_IN[bundle.format]}")
    backend: Backend = module.load(bundle, device=device, threads=threads)
    return backend


_BUILT_IN = {
    "onnx": "onnx.engine",
    "gptq": "onnx.packed",
    "awq": "onnx.packed",
    "compressed-tensors": "onnx.packed",
    "trt": "trt.engine",
}


def _installed(name: str) -> Callable[..., Backend]:
    """The engine that some distribution declares under this name."""
    found = {point.name: point for point in entry_points(group=ENGINES)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise InputError(f"unknown engine {name!r}", hint=f"installed beside the runtime's own: {known}")
    load: Callable[..., Backend] = found[name].load()
    return load
