"""The compressed-tensors layout "pack-quantized": integer weights in groups.

Of a linear layer with weight [N, K], groups of g inputs and b bits:

    weight_packed      int32 [N, K·b / 32]        codes, packed along K
    weight_scale       float16 [N, K / g]
    weight_zero_point  int32 [N·b / 32, K / g]    packed along N; left out when symmetric
    weight_shape       int64 [2]                  (N, K)

Codes and zero points are signed numbers in the library and stored with an offset of 2^(b-1), which makes them the
unsigned ones of ours. `w = (code - zero) · scale`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.bits import Words, pack_words, unpack_words, word_bytes, words_fit
from edgetune_runtime.quant.blocks import BlockWeight, Codes

Array = npt.NDArray[Any]

BITS = (4, 8)
"""Versions of the library differ in how they pack 3 bits."""


def pack(weight: BlockWeight, name: str = "weight") -> dict[str, Array]:
    """The tensors of a weight; `name` is for errors.

    Raises:
        InputError: the layout cannot hold it: other bits than 4 and 8, or sizes that do not fill whole words.
    """
    rows, groups, block = weight.codes.shape
    if weight.bits not in BITS:
        raise InputError(
            f"{name}: compressed-tensors checkpoints hold 4 or 8 bits here, not {weight.bits}, for versions of that "
            "library pack it differently"
        )
    if weight.columns != groups * block or not words_fit(weight.columns, weight.bits):
        raise InputError(f"{name}: {weight.columns} inputs in groups of {block} do not fill the layout's words")
    tensors: dict[str, Array] = {
        "weight_packed": pack_words(weight.codes.reshape(rows, -1), weight.bits),
        "weight_scale": weight.scales.astype(np.float16),
        "weight_shape": np.array([rows, weight.columns], np.int64),
    }
    if weight.zero_points is not None:
        if not words_fit(rows, weight.bits):
            raise InputError(f"{name}: zero points of {rows} outputs do not fill the layout's words")
        by_output = pack_words(np.ascontiguousarray(weight.zero_points.T), weight.bits)
        tensors["weight_zero_point"] = np.ascontiguousarray(by_output.T)
    return tensors


def row_bytes(weight_packed: Words) -> Codes:
    """uint8 [N, K·bits / 8]: each output's codes as a bit stream, of 4-bit codes the low half of a byte first."""
    return word_bytes(weight_packed)


def zero_points(weight_zero_point: Words, bits: int) -> Codes:
    """uint8 [N, groups]."""
    return np.ascontiguousarray(unpack_words(weight_zero_point.T, bits).T)
