"""One product of a packed matrix with a vector, and all that is cheap to do beside it: the kernel of a decode step.

A step reads every weight once and computes little with it, so memory sets its speed as long as unpacking is cheap. A
code is never converted to a float: put behind the exponent bits of 1.0, the code c of 4 bits is the float 1 + c/16
(upper half of a byte) or 1 + c/256 (lower half), and what the ones add up to is known from the inputs alone:

    Σ (c - z)·x = u·Σ (1 + c/u)·x - (u + z)·Σ x

Every product is a multiply-add in float32. Around it: RMSNorm of the input (its factor is common to the row, so it is
applied at the end), SwiGLU of two stacked halves, bias, residual, and the largest output for greedy decoding.

`PDL` is programmatic dependent launch (compute capability 9.0): a program starts while the previous kernel ends, loads
its first weights, which no kernel writes, and only then waits for its input.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.constexpr_function
def unit(part: int, bits: int) -> int:
    """The u of `one_and`."""
    return 16 if bits == 4 and part % 2 == 1 else 256


@triton.jit
def one_and(words, one, PART: tl.constexpr, BITS: tl.constexpr):
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


@triton.jit
def _words(weight, line, word, start, end, mask):
    """A tile of a weight: from `start` on in each row, as far as rows go."""
    place = start + word
    return tl.load(weight + line + place[None, :], mask=mask & (place < end)[None, :], other=0)


@triton.jit
def _scaled(products, offsets, sums, scales, zeros, place, mask, BITS: tl.constexpr, ZERO: tl.constexpr):
    """Products [rows, words] summed over groups, less what the ones and the zero points add, times scales."""
    rows: tl.constexpr = products.shape[0]
    words: tl.constexpr = products.shape[1]
    shape: tl.constexpr = (rows, place.shape[1], words // place.shape[1])
    if BITS == 16:
        return tl.sum(products.reshape(shape), 2)
    else:
        total = tl.sum((products - offsets[None, :]).reshape(shape), 2)
        if ZERO < 0:
            zero = tl.load(zeros + place, mask=mask, other=0).to(tl.float32)
            total -= zero * tl.sum(tl.broadcast_to(sums[None, :], (rows, words)).reshape(shape), 2)
        return total * tl.load(scales + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def linear_kernel(
    inputs, norm, weight, scales, zeros, bias, residual, out, best, best_row, rows, eps, one,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    NORM: tl.constexpr, GLU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows program·BLOCK_ROWS and on of `out = f(weight · norm(inputs) + bias) + residual`.

    Tensors:
        inputs: any float dtype [K].
        norm: float32 [K], gain of the RMSNorm, with NORM.
        weight: int32 or float [rows (twice with GLU), GROUPS, WORDS], see `packing.PackedLinear`.
        scales: float16 or float32 [same rows, GROUPS].
        zeros: uint8 [same rows, GROUPS], when ZERO is negative; else ZERO is every zero point.
        bias: float32 [same rows], with BIAS.
        residual: float32 [rows], added with RESIDUAL; may be `out`.
        out: any float dtype [rows]; with GLU, silu(first half) · second half.
        best: float32 [programs], the largest output of each, with BEST.
        best_row: int32 [programs], the first row that has it.
        one: the bits of 1.0.
        BLOCK_GROUPS: 4 words a thread, so that each thread multiplies its inputs with all rows of the program.
    """
    block: tl.constexpr = BLOCK_GROUPS * WORDS
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    group = tl.arange(0, BLOCK_GROUPS)
    word = tl.arange(0, block)
    first_column = word // WORDS * GROUP + word % WORDS
    here = (row < rows)[:, None]
    line = row[:, None].to(tl.int64) * (GROUPS * WORDS)
    end = GROUPS * WORDS
    up_weight = weight + rows * end
    first = _words(weight, line, word, 0, end, here)
    first_up = first
    if GLU:
        first_up = _words(up_weight, line, word, 0, end, here)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros([BLOCK_ROWS, BLOCK_GROUPS], tl.float32)
    total_up = tl.zeros([BLOCK_ROWS, BLOCK_GROUPS], tl.float32)
    squares = tl.zeros([block], tl.float32)
    for start in tl.static_range(0, GROUPS, BLOCK_GROUPS):
        words = first
        up_words = first_up
        if start > 0:
            words = _words(weight, line, word, start * WORDS, end, here)
            up_words = words
            if GLU:
                up_words = _words(up_weight, line, word, start * WORDS, end, here)
        products = tl.zeros([BLOCK_ROWS, block], tl.float32)
        up_products = tl.zeros([BLOCK_ROWS, block], tl.float32)
        offsets = tl.zeros([block], tl.float32)
        sums = tl.zeros([block], tl.float32)
        for part in tl.static_range(GROUP // WORDS):
            column = start * GROUP + part * WORDS + first_column
            x = tl.load(inputs + column, mask=column < GROUPS * GROUP, other=0.0).to(tl.float32)
            if NORM:
                squares += x * x
                x *= tl.load(norm + column, mask=column < GROUPS * GROUP, other=0.0)
            if BITS == 16:
                products += words.to(tl.float32) * x[None, :]
                up_products += up_words.to(tl.float32) * x[None, :]
            else:
                scaled = x * unit(part, BITS)
                if ZERO < 0:
                    sums += x
                    offsets += scaled
                else:
                    offsets += x * (unit(part, BITS) + ZERO)
                products += one_and(words, one, part, BITS) * scaled[None, :]
                up_products += one_and(up_words, one, part, BITS) * scaled[None, :]
        place = line // WORDS + (start + group)[None, :]
        known = here & (start + group < GROUPS)[None, :]
        total += _scaled(products, offsets, sums, scales, zeros, place, known, BITS, ZERO)
        if GLU:
            beyond = place + rows * GROUPS
            total_up += _scaled(up_products, offsets, sums, scales, zeros, beyond, known, BITS, ZERO)
    result = tl.sum(total, 1)
    up = tl.sum(total_up, 1)
    row_here = row < rows
    if NORM:
        factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / (GROUPS * GROUP) + eps)
        result *= factor
        up *= factor
    if BIAS:
        result += tl.load(bias + row, mask=row_here, other=0.0)
        up += tl.load(bias + rows + row, mask=row_here & GLU, other=0.0)
    if GLU:
        result = up * result / (1.0 + tl.exp(-result))
    if RESIDUAL:
        result += tl.load(residual + row, mask=row_here, other=0.0)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row_here)
    if BEST:
        value, index = tl.max(tl.where(row_here, result, float("-inf")), 0, return_indices=True)
        tl.store(best + tl.program_id(0), value)
        tl.store(best_row + tl.program_id(0), tl.program_id(0) * BLOCK_ROWS + index)


@triton.jit
def dequantize_kernel(
    weight, scales, zeros, out,
    GROUP: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr,
    groups,
):  # fmt: skip
    """Write BLOCK groups of a packed weight out as floats [rows · groups, GROUP], for products with many tokens."""
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.arange(0, WORDS)
    inside = group < groups
    words = tl.load(weight + group[:, None] * WORDS + word[None, :], mask=inside[:, None], other=0)
    scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    zero = tl.full([BLOCK], ZERO, tl.float32)
    if ZERO < 0:
        zero = tl.load(zeros + group, mask=inside, other=0).to(tl.float32)
    for part in tl.static_range(GROUP // WORDS):
        code = (words >> (part * BITS)) & ((1 << BITS) - 1)
        value = (code.to(tl.float32) - zero[:, None]) * scale[:, None]
        place = group[:, None] * GROUP + part * WORDS + word[None, :]
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside[:, None])
