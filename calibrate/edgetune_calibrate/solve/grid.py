"""The grid a weight is rounded to: one scale and zero point for each group of columns, as every reader takes them.

Rules of the weight set: a scale is positive and exactly a float16; a zero point is an integer in 1 .. 2^bits - 1, and
2^(bits-1) when symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight

# The smallest normal float16: engines may flush smaller scales to zero.
SMALLEST = 2.0**-14
LARGEST = 65504.0


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of a weight [N, K].

    Attributes:
        scale: float32 [N, groups], values that float16 holds exactly.
        zero: float32 [N, groups], whole numbers.
        bits: width of a code.
        symmetric: every zero is 2^(bits-1).
    """

    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def codes(self, weight: Tensor) -> Tensor:
        """Round a weight [N, K] to the nearest codes, float32 [N, K]."""
        blocks = weight.unflatten(1, (self.scale.shape[1], -1))
        codes: Tensor = torch.round(blocks / self.scale[..., None]) + self.zero[..., None]
        return codes.clamp_(0, self.top).flatten(1)

    def values(self, codes: Tensor) -> Tensor:
        """The float32 [N, K] that codes [N, K] stand for."""
        blocks = codes.unflatten(1, (self.scale.shape[1], -1))
        values: Tensor = (blocks - self.zero[..., None]) * self.scale[..., None]
        return values.flatten(1)

    def split(self, rows: list[int]) -> list[Grid]:
        """Cut it into grids of so many rows each."""
        parts = zip(self.scale.split(rows), self.zero.split(rows), strict=True)
        return [Grid(scale, zero, self.bits, self.symmetric) for scale, zero in parts]

    def block_weight(self, codes: Tensor) -> BlockWeight:
        """Hand codes [N, K] over as the weight set stores them, on the CPU."""
        blocks = codes.unflatten(1, (self.scale.shape[1], -1)).to(torch.uint8).cpu()
        return BlockWeight(
            codes=blocks.numpy(),
            scales=self.scale.cpu().numpy(),
            zero_points=None if self.symmetric else self.zero.to(torch.uint8).cpu().numpy(),
            bits=self.bits,
            columns=codes.shape[1],
        )


def as_float16(scale: Tensor) -> Tensor:
    """Round scales to positive float16 values, kept as float32."""
    return scale.clamp(SMALLEST, LARGEST).half().float()


def spanning(weight: Tensor, fmt: BlockFormat, share: float = 1.0) -> Grid:
    """The grid that spans every group of a weight [N, K], or a share of its span, from its least to its largest entry.

    Zero is always on it.
    """
    blocks = weight.unflatten(1, (-1, fmt.block))
    low, high = blocks.amin(2).clamp(max=0) * share, blocks.amax(2).clamp(min=0) * share
    top = (1 << fmt.bits) - 1
    if fmt.symmetric:
        half = 1 << (fmt.bits - 1)
        scale = as_float16(torch.maximum(-low / half, high / (half - 1)))
        return Grid(scale, torch.full_like(scale, half), fmt.bits, True)
    # A zero point of at least 1 leaves the top - 1 codes above it for the positive side.
    scale = as_float16(torch.maximum((high - low) / top, high / (top - 1)))
    return Grid(scale, torch.round(-low / scale).clamp_(1, top), fmt.bits, False)
