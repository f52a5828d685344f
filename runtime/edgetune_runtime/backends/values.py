"""What goes into an engine and comes out of it: arrays, devices, image features, sizes of a model, saved sequences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]

DEVICES = ("cpu", "cuda")


class Device(NamedTuple):
    """Where an engine computes: "cpu", or "cuda" and the number of the GPU."""

    kind: str
    number: int = 0

    @classmethod
    def parse(cls, text: Any) -> Device:
        """Read "cpu", "cuda" or "cuda:1".

        Raises:
            InputError: it is none of these.
        """
        found = re.fullmatch(r"(cpu|cuda)|cuda:(\d{1,3})", text) if isinstance(text, str) else None
        if found is None:
            raise InputError(f"unknown device {text!r}", hint="choose cpu, cuda, or one of several GPUs such as cuda:1")
        return cls(found[1] or "cuda", int(found[2] or 0))


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision encoder makes of images: float32 [tokens, H] each.

    Attributes:
        embeddings: stand in for the image tokens' embeddings.
        deepstack: added after the first decoder layers, one array a layer.
        kept: the same where the engine computed it, if it reads them from there.
    """

    embeddings: Float
    deepstack: tuple[Float, ...]
    kept: Any = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return self.embeddings.nbytes + sum(array.nbytes for array in self.deepstack)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a loaded model, as its graphs or tensors tell and not its manifest.

    Attributes:
        hidden: H, of an embedding.
        vocabulary: V, how many tokens there are.
        deepstack: how many decoder layers image features are added after.
        layers: of the decoder.
        kv_heads: heads of keys and values in a layer's cache.
        head_dim: channels of a head.
        pixels: values of a row of `pixel_values`, or None where rows are no flat patches or nobody knows.
        raw_pixels: whether `pixel_values` are uint8 as in the picture, which the encoder itself normalises.
    """

    hidden: int
    vocabulary: int
    deepstack: int
    layers: int
    kv_heads: int
    head_dim: int
    pixels: int | None = None
    raw_pixels: bool = False


@dataclass(frozen=True)
class Saved:
    """The beginning of a sequence, copied out of an engine.

    Attributes:
        length: how many tokens it has.
        arrays: what the engine keeps of them, in an order of its own.
    """

    length: int
    arrays: tuple[npt.NDArray[Any], ...]

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return sum(array.nbytes for array in self.arrays)
