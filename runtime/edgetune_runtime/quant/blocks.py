"""Block-wise round-to-nearest weights and the packing that com.microsoft MatMulNBits reads.

A linear layer's weight [N, K] is cut along K into blocks; each block has one scale and, when asymmetric, one zero
point:
`w ≈ (code - zero_point) · scale`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockFormat:
    """How a weight is cut and rounded: 4 or 8 bits, block length along K, with or without zero points."""

    bits: int
    block: int
    symmetric: bool


@dataclass(frozen=True)
class BlockWeight:
    """A weight [N, K] as codes: what round-to-nearest makes, and what a calibrated solver may supply instead.

    Attributes:
        codes: uint8 [N, blocks, block], each in 0 .. 2^bits - 1; K is padded up to whole blocks.
        scales: float32 [N, blocks].
        zero_points: uint8 [N, blocks], or None for 2^(bits-1) everywhere.
        columns: K, without the padding.
    """

    codes: Codes
    scales: Float
    zero_points: Codes | None
    bits: int
    columns: int

    @property
    def block(self) -> int:
        """Block length along K."""
        return int(self.codes.shape[2])

    def all_zero_points(self) -> Codes:
        """uint8 [N, blocks], written out when symmetric too."""
        if self.zero_points is None:
            return np.full(self.scales.shape, 1 << (self.bits - 1), np.uint8)
        return self.zero_points

    def rows(self, first: int, end: int) -> BlockWeight:
        """Rows of the weight, from the first to before the end."""
        zeros = None if self.zero_points is None else self.zero_points[first:end]
        return replace(self, codes=self.codes[first:end], scales=self.scales[first:end], zero_points=zeros)

    def dequantize(self) -> Float:
        """The float32 [N, K] that the codes stand for."""
        blocks = self.codes.astype(np.float32)
        blocks -= self.all_zero_points()[:, :, None]  # in place: a head's values are gigabytes
        blocks *= self.scales[:, :, None]
        return np.ascontiguousarray(blocks.reshape(len(blocks), -1)[:, : self.columns])

    def packed_codes(self) -> Codes:
        """uint8 [N, blocks, block·bits / 8]; of two 4-bit codes in a byte the first is the low half."""
        return self.codes if self.bits == 8 else pack_nibbles(self.codes)

    def packed_zero_points(self) -> Codes | None:
        """uint8 [N, ceil(blocks·bits / 8)], or None when symmetric."""
        if self.zero_points is None or self.bits == 8:
            return self.zero_points
        return pack_nibbles(self.zero_points)


def pack_nibbles(codes: Codes) -> Codes:
    """uint8 [..., ceil(n / 2)] of 4-bit codes [..., n]; of two in a byte the first is the low half."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, (*((0, 0),) * (codes.ndim - 1), (0, 1)))
    packed: Codes = np.bitwise_or(codes[..., 0::2], np.left_shift(codes[..., 1::2], np.uint8(4)))
    return packed


def unpack_nibbles(packed: Codes) -> Codes:
    """uint8 [..., 2·n] of the 4-bit codes in [..., n] bytes, low halves first."""
    halves = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)


def in_nibbles(weight: BlockWeight) -> BlockWeight:
    """3-bit codes as 4-bit ones of the same values, for operators that know no 3 bits; others as they are."""
    if weight.bits != 3:
        return weight
    if weight.zero_points is not None:
        return replace(weight, bits=4)
    # Without zero points code 4 meant zero, and code 8 does: shift the codes rather than write zero points.
    return replace(weight, codes=weight.codes + np.uint8(4), bits=4)


def round_to_nearest(weight: Float, fmt: BlockFormat) -> BlockWeight:
    """Quantize a weight [N, K] block by block.

    Symmetric blocks map the entry of largest magnitude to code 0, which uses all 2^bits codes where ±max scaling would
    leave one unused. Asymmetric blocks span min..max, widened to hold zero so that zero stays exact.
    """
    rows, columns = weight.shape
    padding = -columns % fmt.block
    blocks = np.pad(np.asarray(weight, np.float32), ((0, 0), (0, padding))).reshape(rows, -1, fmt.block)
    top = (1 << fmt.bits) - 1
    if fmt.symmetric:
        half = 1 << (fmt.bits - 1)
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[:, :, None], axis=2)
        scales = extreme / np.float32(-half)
        zero = np.full_like(scales, half)
    else:
        low, high = np.minimum(blocks.min(axis=2, keepdims=True), 0), np.maximum(blocks.max(axis=2, keepdims=True), 0)
        scales = (high - low) / np.float32(top)
        zero = np.rint(-low / np.where(scales == 0, 1, scales)).clip(0, top)
    safe = np.where(scales == 0, np.float32(1), scales)  # an all-zero block: any scale gives its zeros back
    codes = (np.rint(blocks / safe) + zero).clip(0, top).astype(np.uint8)
    return BlockWeight(
        codes=codes,
        scales=safe[:, :, 0].astype(np.float32),
        zero_points=None if fmt.symmetric else zero[:, :, 0].astype(np.uint8),
        bits=fmt.bits,
        columns=columns,
    )
