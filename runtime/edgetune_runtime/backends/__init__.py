"""Inference engines behind one protocol. A module is imported only when a bundle of its format is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError

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


def load_backend(bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load the engine for a bundle's format.

    Raises:
        InputError: the device name or the thread count makes no sense, no backend reads the format, or the bundle
            does not compute in what the device's kernels need.
        MissingDependency: the engine, or its provider for the device, is not installed.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}", hint=f"choose one of: {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    if bundle.format != "onnx":
        raise InputError(f"{bundle.folder}: this version has no backend for format {bundle.format!r}")
    if device == "cuda" and not bundle.half:
        # CUDA's GroupQueryAttention is float16 only. In float32 onnxruntime moves it to the CPU, where the cache is no
        # longer one buffer: on an H200 every answer was right for one token and wrong from then on.
        raise InputError(
            f"{bundle.folder}: computes in float32, but attention on CUDA needs float16",
            hint="export with --target cuda",
        )
    from edgetune_runtime.backends.onnx import OnnxBackend

    files = bundle.files
    return OnnxBackend(
        vision=files["vision"], embed=files["embed"], decoder=files["decoder"], device=device, threads=threads
    )
