"""One product of a packed matrix with a vector, and all that is cheap to do beside it: the kernel of a decode step.

A step reads every weight once and computes little with it, so memory sets its speed as long as unpacking is cheap. So
codes are not converted to floats. The input is rounded to 16 bits by groups, as an integer q and a step common to the
group, and the machine multiplies four bytes of codes with four bytes of q and adds them up in one instruction:

    sum of (c - z)·s·x = s·step·(sum of c·q - z·(sum of q)),  q = 256·high + low

Sums are exact integers within a group, and float32 over groups. Around the product: RMSNorm of the input (its factor is
common to the row, so it is applied at the end), SwiGLU of two stacked halves, bias, residual, and the largest output
for greedy decoding.

`PDL` is programmatic dependent launch (compute capability 9.0): a program starts while the previous kernel ends, loads
its first weights, which no kernel writes, and only then waits for its input.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ROUND = tl.constexpr(12582912.0)
"""Added to a float32 of less than 2^22, it leaves the nearest integer in the low bits."""


@triton.constexpr_function
def _limit(bits: int, group: int) -> int:
    """The largest q: 16 bits, or fewer where a group's sum would exceed 32."""
    return min(32767, (2**31 - 1) // (((1 << bits) - 1) * group))


@triton.jit
def _dot4(codes, digits, total, SIGNED: tl.constexpr, ASM: tl.constexpr):
    """Total and the products of four unsigned bytes of codes with four of digits, signed ones with SIGNED."""
    if ASM:
        if SIGNED:
            return tl.inline_asm_elementwise(
                "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, digits, total], tl.int32, is_pure=True, pack=1
            )
        else:
            return tl.inline_asm_elementwise(
                "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [codes, digits, total], tl.int32, is_pure=True, pack=1
            )
    else:
        for byte in tl.static_range(4):
            digit = (digits >> (8 * byte)) & 255
            if SIGNED:
                digit = (digit ^ 128) - 128
            total += ((codes >> (8 * byte)) & 255) * digit
        return total


@triton.jit
def _gain(norm, column, columns, NORM: tl.constexpr):
    """The norm's gain of columns, which is no one's output and may be loaded early."""
    gain = tl.full(column.shape, 1.0, tl.float32)
    if NORM:
        gain = tl.load(norm + column, mask=column < columns, other=0.0)
    return gain


@triton.jit
def _digits(a, b, c, d, ASM: tl.constexpr):
    """The second byte of each of four integers, and the first of each."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 ab, cd;
            prmt.b32 ab, $2, $3, 0x5140;
            prmt.b32 cd, $4, $5, 0x5140;
            prmt.b32 $0, ab, cd, 0x7632;
            prmt.b32 $1, ab, cd, 0x5410;
            }""",
            "=r,=r,r,r,r,r",
            [a, b, c, d],
            (tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        low = (a & 255) | ((b & 255) << 8) | ((c & 255) << 16) | (d << 24)
        high = ((a >> 8) & 255) | (((b >> 8) & 255) << 8) | (((c >> 8) & 255) << 16) | ((d >> 8) << 24)
        return high, low


@triton.jit
def _grouped(values, GROUPS: tl.constexpr):
    """Sums over the words of each group: [rows, words] to [rows, GROUPS]."""
    rows: tl.constexpr = values.shape[0]
    return tl.sum(values.reshape(rows, GROUPS, values.shape[1] // GROUPS), 2)


@triton.jit
def _tile(
    weight, scales, zeros, row, here, start,
    GROUPS: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, BLOCK_GROUPS: tl.constexpr
):  # fmt: skip
    """From group `start` on in each row, as far as rows go: words, and their groups' scales and zero points."""
    group = start + tl.arange(0, BLOCK_GROUPS)
    word = start * WORDS + tl.arange(0, BLOCK_GROUPS * WORDS)
    line = row[:, None].to(tl.int64) * GROUPS
    mask = here & (word < GROUPS * WORDS)[None, :]
    words = tl.load(weight + line * WORDS + word[None, :], mask=mask, other=0)
    known = here & (group < GROUPS)[None, :]
    scale = tl.zeros([row.shape[0], BLOCK_GROUPS], tl.float32)
    zero = tl.full([row.shape[0], BLOCK_GROUPS], ZERO, tl.int32)
    if BITS < 16:
        scale = tl.load(scales + line + group[None, :], mask=known, other=0.0).to(tl.float32)
        if ZERO < 0:
            zero = tl.load(zeros + line + group[None, :], mask=known, other=0).to(tl.int32)
    return words, scale, zero


@triton.jit
def linear_kernel(
    inputs, norm, weight, scales, zeros, bias, residual, out, best, best_row, rows, eps,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    NORM: tl.constexpr, GLU: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BEST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr, PDL: tl.constexpr, ASM: tl.constexpr,
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
        ASM: whether machine instructions can be named, which Triton's interpreter cannot run.
    """
    block: tl.constexpr = BLOCK_GROUPS * WORDS
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    word = tl.arange(0, block)
    row_here = row < rows
    here = row_here[:, None]
    up = rows + row
    columns: tl.constexpr = GROUPS * GROUP
    limit: tl.constexpr = _limit(BITS, GROUP)
    mask: tl.constexpr = 0x0F0F0F0F if BITS == 4 else -1
    packed: tl.constexpr = 8 // BITS  # codes in a byte
    ones = tl.full([1, block], 0x01010101, tl.int32)
    words, scale, zero = _tile(weight, scales, zeros, row, here, 0, GROUPS, WORDS, BITS, ZERO, BLOCK_GROUPS)
    up_words, up_scale, up_zero = words, scale, zero
    if GLU:
        up_words, up_scale, up_zero = _tile(weight, scales, zeros, up, here, 0, GROUPS, WORDS, BITS, ZERO, BLOCK_GROUPS)
    parts: tl.constexpr = GROUP // WORDS
    gains = ()
    for part in tl.static_range(parts):
        column = word // WORDS * GROUP + word % WORDS + part * WORDS
        gains = gains + (_gain(norm, column, columns, NORM),)  # noqa: RUF005 - Triton has no stars
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    before = tl.zeros([BLOCK_ROWS], tl.float32)
    if RESIDUAL:
        before = tl.load(residual + row, mask=row_here, other=0.0)
    total = tl.zeros([BLOCK_ROWS, BLOCK_GROUPS], tl.float32)
    total_up = tl.zeros([BLOCK_ROWS, BLOCK_GROUPS], tl.float32)
    squares = tl.zeros([block], tl.float32)
    for start in tl.static_range(0, GROUPS, BLOCK_GROUPS):
        next_words, next_scale, next_zero = words, scale, zero
        next_up, next_up_scale, next_up_zero = up_words, up_scale, up_zero
        if start + BLOCK_GROUPS < GROUPS:  # is under way while this tile is multiplied
            next_words, next_scale, next_zero = _tile(
                weight, scales, zeros, row, here, start + BLOCK_GROUPS, GROUPS, WORDS, BITS, ZERO, BLOCK_GROUPS
            )
            if GLU:
                next_up, next_up_scale, next_up_zero = _tile(
                    weight, scales, zeros, up, here, start + BLOCK_GROUPS, GROUPS, WORDS, BITS, ZERO, BLOCK_GROUPS
                )
        first_column = start * GROUP + word // WORDS * GROUP + word % WORDS
        gained = ()
        top = tl.full([block], 1e-30, tl.float32)
        for part in tl.static_range(parts):
            column = first_column + part * WORDS
            x = tl.load(inputs + column, mask=column < columns, other=0.0).to(tl.float32)
            if NORM:
                squares += x * x
                x *= gains[part]
            top = tl.maximum(top, tl.abs(x))
            gained = gained + (x,)  # noqa: RUF005
        if start + BLOCK_GROUPS < GROUPS:
            gains = ()
            for part in tl.static_range(parts):
                column = first_column + BLOCK_GROUPS * GROUP + part * WORDS
                gains = gains + (_gain(norm, column, columns, NORM),)  # noqa: RUF005 - Triton has no stars
        if BITS == 16:
            total += _grouped(words.to(tl.float32) * gained[0][None, :], BLOCK_GROUPS)
            if GLU:
                total_up += _grouped(up_words.to(tl.float32) * gained[0][None, :], BLOCK_GROUPS)
        else:
            group_top = tl.max(top.reshape(BLOCK_GROUPS, WORDS), 1)
            inverse = tl.broadcast_to((limit / group_top)[:, None], (BLOCK_GROUPS, WORDS)).reshape(block)
            high = tl.zeros([BLOCK_ROWS, block], tl.int32)
            low = tl.zeros([BLOCK_ROWS, block], tl.int32)
            up_high = tl.zeros([BLOCK_ROWS, block], tl.int32)
            up_low = tl.zeros([BLOCK_ROWS, block], tl.int32)
            sum_high = tl.zeros([1, block], tl.int32)
            sum_low = tl.zeros([1, block], tl.int32)
            for code in tl.static_range(packed):
                a = (gained[code] * inverse + ROUND).to(tl.int32, bitcast=True)
                b = (gained[code + packed] * inverse + ROUND).to(tl.int32, bitcast=True)
                c = (gained[code + 2 * packed] * inverse + ROUND).to(tl.int32, bitcast=True)
                d = (gained[code + 3 * packed] * inverse + ROUND).to(tl.int32, bitcast=True)
                high_digits, low_digits = _digits(a, b, c, d, ASM)
                high_digits = high_digits[None, :]
                low_digits = low_digits[None, :]
                sum_high = _dot4(ones, high_digits, sum_high, True, ASM)
                sum_low = _dot4(ones, low_digits, sum_low, False, ASM)
                codes = (words >> (4 * code)) & mask
                high = _dot4(codes, high_digits, high, True, ASM)
                low = _dot4(codes, low_digits, low, False, ASM)
                if GLU:
                    up_codes = (up_words >> (4 * code)) & mask
                    up_high = _dot4(up_codes, high_digits, up_high, True, ASM)
                    up_low = _dot4(up_codes, low_digits, up_low, False, ASM)
            sum_q = _grouped(sum_high * 256 + sum_low, BLOCK_GROUPS)
            step = (group_top / limit)[None, :]
            total += (_grouped(high * 256 + low, BLOCK_GROUPS) - zero * sum_q).to(tl.float32) * (scale * step)
            if GLU:
                up_sum = _grouped(up_high * 256 + up_low, BLOCK_GROUPS)
                total_up += (up_sum - up_zero * sum_q).to(tl.float32) * (up_scale * step)
        words, scale, zero = next_words, next_scale, next_zero
        up_words, up_scale, up_zero = next_up, next_up_scale, next_up_zero
    result = tl.sum(total, 1)
    gated = tl.sum(total_up, 1)
    if NORM:
        factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / (GROUPS * GROUP) + eps)
        result *= factor
        gated *= factor
    if BIAS:
        result += tl.load(bias + row, mask=row_here, other=0.0)
        gated += tl.load(bias + up, mask=row_here & GLU, other=0.0)
    if GLU:
        result = gated * result / (1.0 + tl.exp(-result))
    if RESIDUAL:
        result += before
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
