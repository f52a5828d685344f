"""The loops over columns of GPTQ and of its refinement on a GPU: one kernel a block of columns, not ten a column.

Rows never interact. A program takes some of them through all columns of a block, one after the other, with what the
columns before it weigh on the block in registers. What crosses blocks are matrix products outside of the kernels. The
arithmetic is that of the plain loops (`gptq.py`, `refine.py`), so codes differ only where two are equally good up to
the rounding of float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
"""Of a program."""
_EVEN = tl.constexpr(12582912.0)  # 1.5 · 2^23: added to a float32, it leaves no digits behind the point
_FAR = tl.constexpr(4096.0)  # beyond any code, and near enough for the above
_SMALLEST = tl.constexpr(2.0**-14)
_LARGEST = tl.constexpr(65504.0)
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _round(x):
    """The nearest whole number, of two the even one; what is beyond every code only has to stay there."""
    return (tl.minimum(tl.maximum(x, -_FAR), _FAR) + _EVEN) - _EVEN


@triton.jit
def _pick(tile, here):
    """The column of a tile [ROWS, WIDTH] where `here` [1, WIDTH] is true."""
    return tl.sum(tl.where(here, tile, 0.0), 1)


@triton.jit
def gptq_kernel(
    weight, scale, zero, groups, factor, feedback,
    codes, error, rows, columns, group_count, start, width, top,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Round columns `start` .. `start` + `width` of a weight, each with the error of those before it fed back.

    Tensors:
        weight: float32 [rows, columns], its columns in the order that they are rounded.
        scale: float32 [rows, group_count]; `zero` likewise.
        groups: int64 [columns], the group of each column.
        factor: float32 [columns, columns], upper triangular.
        feedback: float32 [rows, width], what columns before `start` weigh on these.
        codes: float32 [rows, columns], written; `error`, weight less what the code stands for, likewise.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    place = tl.arange(0, WIDTH)
    known = place < width
    pulled = tl.load(feedback + row[:, None] * width + place[None, :], mask=inside[:, None] & known[None, :], other=0.0)
    for number in range(width):
        column = start + number
        line = tl.load(factor + column.to(tl.int64) * columns + start + place, mask=known, other=0.0)
        pivot = tl.load(factor + column.to(tl.int64) * columns + column)
        group = tl.load(groups + column)
        own = tl.load(weight + row * columns + column, mask=inside, other=0.0)
        step = tl.load(scale + row * group_count + group, mask=inside, other=1.0)
        offset = tl.load(zero + row * group_count + group, mask=inside, other=0.0)
        pull = _pick(pulled, (place == number)[None, :])
        wanted = tl.div_rn(own + tl.div_rn(pull, tl.broadcast_to(pivot, (ROWS,))), step)
        code = tl.minimum(tl.maximum(_round(wanted) + offset, 0.0), top)
        lost = own - (code - offset) * step
        tl.store(codes + row * columns + column, code, mask=inside)
        tl.store(error + row * columns + column, lost, mask=inside)
        pulled += lost[:, None] * line[None, :]


@triton.jit
def descent_kernel(
    codes, error, scale, zero, pull, stiff, local,
    rows, columns, group_count, group, size, top,
    SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Improve the scales of a group of columns, then each of its codes in turn.

    Tensors:
        codes: float32 [rows, columns], changed; `error`, weight less what the codes stand for, likewise.
        scale: float32 [rows, group_count], changed.
        zero: float32 [rows, group_count].
        pull: float32 [rows, size], the error times the Hessian's columns of the group.
        stiff: float32 [rows, size], the codes less the zero points, times `local`.
        local: float32 [size, size], the Hessian's block of the group.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    place = tl.arange(0, SIZE)
    known = place < size
    mask = inside[:, None] & known[None, :]
    at = row[:, None] * columns + group * size + place[None, :]
    step = tl.load(scale + row * group_count + group, mask=inside, other=1.0)
    offset = tl.load(zero + row * group_count + group, mask=inside, other=0.0)
    units = tl.load(codes + at, mask=mask, other=0.0) - offset[:, None]
    pulled = tl.load(pull + row[:, None] * size + place[None, :], mask=mask, other=0.0)
    reach = tl.load(stiff + row[:, None] * size + place[None, :], mask=mask, other=0.0)

    gain = tl.sum(tl.where(mask, units * pulled, 0.0), 1)
    stiffness = tl.sum(tl.where(mask, reach * units, 0.0), 1)
    moved = step + tl.div_rn(gain, tl.maximum(stiffness, _TINY))
    moved = tl.minimum(tl.maximum(moved, _SMALLEST), _LARGEST).to(tl.float16).to(tl.float32)
    change = moved - step
    moved = tl.where(change * (2 * gain - change * stiffness) > 0, moved, step)
    change = moved - step
    lost = tl.load(error + at, mask=mask, other=0.0) - change[:, None] * units
    pulled -= change[:, None] * reach
    tl.store(scale + row * group_count + group, moved, mask=inside)

    for number in range(size):
        here = (place == number)[None, :]
        line = tl.load(local + number * size + place, mask=known, other=0.0)
        pivot = tl.load(local + number * size + number)
        code = tl.load(codes + row * columns + group * size + number, mask=inside, other=0.0)
        better = code + tl.div_rn(_pick(pulled, here), pivot * moved)
        better = tl.minimum(tl.maximum(_round(better), 0.0), top)
        change = (better - code) * moved
        tl.store(codes + row * columns + group * size + number, better, mask=inside)
        lost -= tl.where(here, change[:, None], 0.0)
        pulled -= change[:, None] * line[None, :]
    tl.store(error + at, lost, mask=mask)


def round_columns(
    weight: Tensor, scale: Tensor, zero: Tensor, groups: Tensor, factor: Tensor, feedback: Tensor,
    codes: Tensor, error: Tensor, start: int, top: int,
) -> None:  # fmt: skip
    """Fill `codes` and `error` [N, K] for the columns from `start` on that `feedback` [N, width] is of.

    All are contiguous; see `gptq_kernel`.
    """
    rows, columns = weight.shape
    width = feedback.shape[1]
    gptq_kernel[(triton.cdiv(rows, ROWS),)](
        weight, scale, zero, groups, factor, feedback, codes, error, rows, columns, scale.shape[1], start, width,
        float(top), WIDTH=triton.next_power_of_2(width), ROWS=ROWS,
    )  # fmt: skip


def descend(
    codes: Tensor, error: Tensor, scale: Tensor, zero: Tensor, hessian: Tensor, group: int, top: int
) -> None:  # fmt: skip
    """Improve a group's scales and codes, in place; see `descent_kernel`."""
    rows, columns = codes.shape
    size = columns // scale.shape[1]
    span = slice(group * size, (group + 1) * size)
    local = hessian[span, span].contiguous()
    units = codes[:, span] - zero[:, group, None]
    descent_kernel[(triton.cdiv(rows, ROWS),)](
        codes, error, scale, zero, error @ hessian[:, span], units @ local, local, rows, columns, scale.shape[1],
        group, size, float(top), SIZE=triton.next_power_of_2(size), ROWS=ROWS,
    )  # fmt: skip
