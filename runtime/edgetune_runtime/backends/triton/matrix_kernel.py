"""The product of a packed matrix with a few vectors, each weight read once: tensor cores multiply, so unpacking is all.

A code is never converted to a float: put behind the exponent bits of 1.0, the code c of 4 bits is the float 1 + c/16
(upper half of a byte) or 1 + c/256 (lower half), from which a weight is a multiply-add and a product away.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def _unit(part: int, bits: int) -> int:
    """The u of `_one_and`."""
    return 16 if bits == 4 and part % 2 == 1 else 256


@triton.jit
def _one_and(words, one, PART: tl.constexpr, BITS: tl.constexpr):
    """The floats 1 + c/u of one code c of every word; `one` is the bits of 1.0.

    They come as an argument since the machine's three-way logic instruction has room for one constant, the mask.
    """
    byte: tl.constexpr = PART // 2 if BITS == 4 else PART
    if byte == 0:  # to the top of a float's fraction, bits 15 to 22
        moved = words << 15
    elif byte == 1:
        moved = words << 7
    elif byte == 2:
        moved = words >> 1
    else:
        moved = words >> 9
    mask: tl.constexpr = 0x007F8000 if BITS == 8 else (0x00780000 if PART % 2 else 0x00078000)
    return ((moved & mask) | one).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["tokens"])  # else 1 and 16 would be compiled anew, in the middle of an answer
def matrix_kernel(
    inputs, weight, scales, zeros, out, rows, tokens, one,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    """Rows program·BLOCK_ROWS and on of `out = inputs · weightᵀ`.

    Tensors:
        inputs: float [tokens, K].
        weight: int32 or float [rows, GROUPS, WORDS], see `packing.PackedLinear`.
        scales: float16 or float32 [rows, GROUPS].
        zeros: uint8 [rows, GROUPS], when ZERO is negative; else ZERO is every zero point.
        out: float [tokens, rows].
        one: the bits of 1.0.
        TOKENS: at least `tokens`.
    """
    block: tl.constexpr = BLOCK_GROUPS * WORDS
    dtype = inputs.dtype.element_ty
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.arange(0, TOKENS)
    group = tl.arange(0, BLOCK_GROUPS)
    word = tl.arange(0, block)
    here = (row < rows)[:, None]
    line = row[:, None].to(tl.int64) * (GROUPS * WORDS)
    total = tl.zeros([BLOCK_ROWS, TOKENS], tl.float32)
    for start in range(0, GROUPS, BLOCK_GROUPS):
        place = start * WORDS + word
        inside = place < GROUPS * WORDS
        words = tl.load(weight + line + place[None, :], mask=here & inside[None, :], other=0)
        if BITS < 16:
            spot = row[:, None].to(tl.int64) * GROUPS + start + group[None, :]
            known = here & (start + group < GROUPS)[None, :]
            scale = tl.load(scales + spot, mask=known, other=0.0).to(tl.float32)
            zero = tl.full([BLOCK_ROWS, BLOCK_GROUPS], ZERO, tl.float32)
            if ZERO < 0:
                zero = tl.load(zeros + spot, mask=known, other=0).to(tl.float32)
            scale = _spread(scale, WORDS)
            zero = _spread(zero, WORDS)
        for part in tl.static_range(GROUP // WORDS):
            column = place // WORDS * GROUP + part * WORDS + place % WORDS
            x = tl.load(
                inputs + token[None, :].to(tl.int64) * (GROUPS * GROUP) + column[:, None],
                mask=(token < tokens)[None, :] & inside[:, None],
                other=0.0,
            )
            if BITS == 16:
                value = words.to(dtype)
            else:
                value = (_one_and(words, one, part, BITS) * _unit(part, BITS) - (_unit(part, BITS) + zero)) * scale
                value = value.to(dtype)
            total = tl.dot(value, x, total, input_precision="ieee")
    to = out + token[None, :].to(tl.int64) * rows + row[:, None]
    tl.store(to, total.to(out.dtype.element_ty), mask=here & (token < tokens)[None, :])


@triton.jit
def _spread(groups, WORDS: tl.constexpr):
    """Values [rows, groups] of groups as those of their words, [rows, groups · WORDS]."""
    rows: tl.constexpr = groups.shape[0]
    count: tl.constexpr = groups.shape[1]
    return tl.broadcast_to(groups[:, :, None], (rows, count, WORDS)).reshape(rows, count * WORDS)
