"""The AWQ checkpoint layout that readers call version "gemm": 4 bits, always with zero points.

Of a linear layer with weight [N, K] and groups of g inputs:

    qweight  int32 [K, N / 8]
    qzeros   int32 [K / g, N / 8]
    scales   float16 [K / g, N]

A word holds 8 neighbouring outputs; its nibbles, lowest first, are outputs 0, 2, 4, 6, 1, 3, 5, 7.
`w[n, k] = (code - zero) · scale`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.bits import Words, pack_words, unpack_words, word_bytes
from edgetune_runtime.quant.blocks import BlockWeight, Codes

Array = npt.NDArray[Any]

_OTHERWISE = "leave the layer out of the calibration (the head: --head 16), or export --format onnx"

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output held by each nibble of a word, lowest nibble first."""

_LOW, _NIBBLE = np.uint32(0x0F0F0F0F), np.uint32(4)


def pack(weight: BlockWeight, name: str = "weight") -> dict[str, Array]:
    """The tensors of a weight; `name` is for errors.

    Raises:
        InputError: the layout cannot hold it: other bits than 4, a padded group, or outputs that do not fill words.
    """
    rows, groups, block = weight.codes.shape
    if weight.bits != BITS:
        raise InputError(f"{name}: AWQ checkpoints hold 4 bits, not {weight.bits}", hint="export --format gptq instead")
    if rows % 8:
        raise InputError(f"{name}: AWQ's layout needs a multiple of 8 outputs, not {rows}", hint=_OTHERWISE)
    if weight.columns != groups * block:
        raise InputError(f"{name}: AWQ's layout needs whole groups: {weight.columns} inputs in groups of {block}")
    return {
        "qweight": _pack_outputs(weight.codes.reshape(rows, -1).T),
        "qzeros": _pack_outputs(weight.all_zero_points().T),
        "scales": np.ascontiguousarray(weight.scales.T.astype(np.float16)),
    }


def row_bytes(qweight: Words) -> Codes:
    """uint8 [N, K / 2]: each output's codes in the order of its inputs, the low half of a byte first.

    Works on words: the nibbles that two neighbouring inputs have of the same output become one byte.
    """
    words = np.ascontiguousarray(qweight.T).view(np.uint32)  # [N / 8, K]
    even, odd = words[:, 0::2], words[:, 1::2]
    low = (even & _LOW) | ((odd & _LOW) << _NIBBLE)
    high = ((even >> _NIBBLE) & _LOW) | (odd & ~_LOW)
    result = np.empty((len(words), 8, words.shape[1] // 2), np.uint8)
    for outputs, pairs in ((ORDER[0::2], low), (ORDER[1::2], high)):
        by_byte = word_bytes(pairs.view(np.int32)).reshape(*pairs.shape, 4)
        for byte, output in enumerate(outputs):
            result[:, output] = by_byte[..., byte]
    return result.reshape(-1, result.shape[2])


def zero_points(qzeros: Words, bits: int = BITS) -> Codes:
    """uint8 [N, groups]."""
    groups, words = qzeros.shape
    by_word = unpack_words(qzeros, bits).reshape(groups, words, 8)
    return np.ascontiguousarray(by_word[..., np.argsort(ORDER)].reshape(groups, -1).T)


def _pack_outputs(codes: Codes) -> Words:
    """int32 [M, N / 8] of codes [M, N]."""
    return pack_words(codes.reshape(len(codes), -1, 8)[..., ORDER].reshape(len(codes), -1), BITS)
