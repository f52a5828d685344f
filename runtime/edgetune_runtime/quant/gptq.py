"""The GPTQ checkpoint layout, as readers call it `checkpoint_format` "gptq" (v1) or "gptq_v2".

Of a linear layer with weight [N, K], groups of g inputs and b bits:

    qweight  int32 [K·b / 32, N]     codes, packed along K
    qzeros   int32 [K / g, N·b / 32] zero points, packed along N; v1 stores them less one
    scales   float16 [K / g, N]
    g_idx    int32 [K]               group of each input

`w[n, k] = (code - zero) · scale` with the zero point and scale of group g_idx[k]. v1 readers add one to whole words, so
a zero point of 0, stored as all ones, would carry into its neighbour: it has no v1 form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.bits import Words, pack_words, unpack_words, word_bytes, words_fit
from edgetune_runtime.quant.blocks import BlockWeight, Codes

Array = npt.NDArray[Any]

_OTHERWISE = "leave the layer out of the calibration (the head: --head 16), or export --format onnx"

BITS = (3, 4, 8)


def pack(weight: BlockWeight, name: str = "weight") -> dict[str, Array]:
    """The v1 tensors of a weight; `name` is for errors.

    Raises:
        InputError: the layout cannot hold it: other bits than 3, 4 and 8, a zero point of 0, or sizes that do not fill
            whole words.
    """
    rows, groups, block = weight.codes.shape
    if weight.bits not in BITS:
        raise InputError(f"{name}: GPTQ checkpoints hold 3, 4 or 8 bits, not {weight.bits}")
    if weight.columns != groups * block or not words_fit(weight.columns, weight.bits):
        raise InputError(f"{name}: {weight.columns} inputs in groups of {block} do not fill the words of GPTQ's layout")
    if not words_fit(rows, weight.bits):
        step = 32 // int(np.gcd(weight.bits, 32))
        raise InputError(f"{name}: GPTQ's layout needs a multiple of {step} outputs, not {rows}", hint=_OTHERWISE)
    zeros = weight.all_zero_points()
    if not zeros.all():
        raise InputError(f"{name}: a zero point of 0 has no form in GPTQ's first layout, which stores them less one")
    return {
        "qweight": np.ascontiguousarray(pack_words(weight.codes.reshape(rows, -1), weight.bits).T),
        "qzeros": pack_words(np.ascontiguousarray(zeros.T - np.uint8(1)), weight.bits),
        "scales": np.ascontiguousarray(weight.scales.T.astype(np.float16)),
        "g_idx": np.repeat(np.arange(groups, dtype=np.int32), block),
    }


def row_bytes(qweight: Words) -> Codes:
    """uint8 [N, K·bits / 8]: each output's codes as a bit stream, of 4-bit codes the low half of a byte first."""
    return word_bytes(qweight.T)


def zero_points(qzeros: Words, bits: int, *, v2: bool = False) -> Codes:
    """uint8 [N, groups].

    Raises:
        InputError: a v1 zero point is stored as all ones: some readers take it for 0, others for 2^bits.
    """
    stored = np.ascontiguousarray(unpack_words(qzeros, bits).T)
    if v2:
        return stored
    if int(stored.max(initial=0)) == (1 << bits) - 1:
        raise InputError("a GPTQ zero point is stored as all ones, which readers take for different numbers")
    zeros: Codes = stored + np.uint8(1)
    return zeros
