"""Linear layers as the GPU kernels read them.

A row's quantization groups follow one another; a group of G columns is `words` int32, each holding 4 bytes. Byte b of
word w is, at 4 bits, the codes of columns 2b·words + w (low half) and (2b + 1)·words + w of the group, and at 8 bits
the code of column b·words + w. So the threads of a warp read neighbouring words, and what multiplies their byte b are
neighbouring inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockWeight

DENSE_GROUP = 64
"""Columns that stand for a group in a dense layer, so that one kernel walks over both kinds."""

MIN_GROUP = 32
"""Smaller groups would leave a thread less than one load of 16 bytes."""


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer [N, K] with G columns a group.

    Attributes:
        weight: int32 [N, K / G, words] as above, or float16/bfloat16/float32 [N, K / DENSE_GROUP, DENSE_GROUP].
        bits: 4 or 8, or 16 for a dense layer of any dtype; codes of 3 bits are kept in 4.
        group: G.
        scales: float16 or float32 [N, K / G]; None when dense.
        zeros: uint8 [N, K / G], or None when `zero` is every group's.
        zero: the zero point of symmetric codes.
        bias: float32 [N] or None.
    """

    weight: torch.Tensor
    bits: int
    group: int
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    zero: int = 0
    bias: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """N, the output size."""
        return int(self.weight.shape[0])

    @property
    def columns(self) -> int:
        """K, the input size."""
        return int(self.weight.shape[1]) * self.group

    def to(self, device: torch.device) -> PackedLinear:
        """The same layer on a device."""
        moved = (None if part is None else part.to(device) for part in (self.scales, self.zeros, self.bias))
        scales, zeros, bias = moved
        return replace(self, weight=self.weight.to(device), scales=scales, zeros=zeros, bias=bias)

    def outputs(self, rows: torch.Tensor) -> PackedLinear:
        """The layer with these outputs alone; int64, on the layer's device."""
        chosen = (None if part is None else part[rows] for part in (self.scales, self.zeros, self.bias))
        scales, zeros, bias = chosen
        return replace(self, weight=self.weight[rows], scales=scales, zeros=zeros, bias=bias)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [N, K] that the codes stand for, computed in float32 and rounded to `dtype`."""
        if self.scales is None:
            return self.weight.reshape(self.rows, -1).to(dtype)
        parts = 32 // self.bits
        shifts = torch.arange(parts, dtype=torch.int32, device=self.weight.device)[:, None] * self.bits
        codes = (self.weight[:, :, None] >> shifts) & ((1 << self.bits) - 1)  # [N, groups, parts, words]
        zero = self.zero if self.zeros is None else self.zeros[:, :, None].float()
        values = (codes.flatten(2).float() - zero) * self.scales[:, :, None].float()
        return values.reshape(self.rows, -1).to(dtype)


def pack(weight: BlockWeight, bias: torch.Tensor | None = None) -> PackedLinear:
    """Lay a quantized weight out for the kernels.

    Raises:
        InputError: the group size or the number of columns is none the kernels read.
    """
    rows, groups, group = weight.codes.shape
    if group < MIN_GROUP or group & (group - 1) or group * groups != weight.columns:
        raise InputError(
            f"a layer of {weight.columns} inputs in groups of {group} does not fit the torch engine",
            hint="use groups of 32, 64 or 128 that divide the layers' input size",
        )
    bits = 8 if weight.bits == 8 else 4
    parts = 32 // bits
    codes = weight.codes.reshape(rows, groups, parts, group // parts).astype(np.uint32)
    words = np.zeros((rows, groups, group // parts), np.uint32)
    for part in range(parts):
        words |= codes[:, :, part] << np.uint32(part * bits)
    scales = torch.from_numpy(np.ascontiguousarray(weight.scales))
    half = scales.half()
    zeros = None if weight.zero_points is None else torch.from_numpy(np.ascontiguousarray(weight.zero_points))
    return PackedLinear(
        weight=torch.from_numpy(words.view(np.int32)),
        bits=bits,
        group=group,
        scales=half if torch.equal(half.float(), scales) else scales,
        zeros=zeros,
        zero=1 << (weight.bits - 1),
        bias=bias,
    )


def dense(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
    """A layer [N, K] that is not quantized.

    Raises:
        InputError: K is not a multiple of DENSE_GROUP.
    """
    rows, columns = weight.shape
    if columns % DENSE_GROUP:
        raise InputError(f"a layer of {columns} inputs: the torch engine needs a multiple of {DENSE_GROUP}")
    return PackedLinear(weight=weight.reshape(rows, -1, DENSE_GROUP), bits=16, group=DENSE_GROUP, bias=bias)


def stack(layers: Sequence[PackedLinear]) -> PackedLinear:
    """One layer of several that read the same input, stacked along N.

    Raises:
        InputError: they are of different formats.
    """
    first = layers[0]
    if len({(layer.bits, layer.group, layer.zeros is None, layer.zero, layer.weight.dtype) for layer in layers}) > 1:
        raise InputError("q, k and v, or gate and up, of one block are quantized differently; export them alike")

    def joined(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
        present = [part for part in parts if part is not None]
        if not present:
            return None
        dtype = torch.float32 if any(part.dtype == torch.float32 for part in present) else present[0].dtype
        sizes = [layer.rows for layer in layers]
        filled = [torch.zeros(n) if part is None else part for n, part in zip(sizes, parts, strict=True)]
        return torch.cat([part.to(dtype) for part in filled])

    return replace(
        first,
        weight=torch.cat([layer.weight for layer in layers]),
        scales=joined([layer.scales for layer in layers]),
        zeros=joined([layer.zeros for layer in layers]),
        bias=joined([layer.bias for layer in layers]),
    )
