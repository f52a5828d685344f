"""The two ends of a decode step: from a token to the first layer's input, and from logits to the next token."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait


@triton.jit
def begin_kernel(
    token, table, states, positions, rope, cos, sin,
    hidden, HALF: tl.constexpr, EMBED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Look up the token's embedding (with EMBED) and the angles of its position.

    Tensors:
        token: int64 [1].
        table: float [V, hidden], the token embeddings.
        states: float32 [hidden], written with EMBED.
        positions: int64 [3] on the axes of `rope`.
        rope: float32 [3, HALF]; angles = positions @ rope.
        cos: float32 [HALF], written; `sin` likewise.
    """
    if PDL:
        gdc_wait()
    if tl.program_id(0) == 0:
        column = tl.arange(0, HALF)
        angle = tl.zeros([HALF], tl.float32)
        for axis in tl.static_range(3):
            angle += tl.load(positions + axis).to(tl.float32) * tl.load(rope + axis * HALF + column)
        tl.store(cos + column, tl.cos(angle))
        tl.store(sin + column, tl.sin(angle))
    if EMBED:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        line = table + tl.load(token) * hidden
        tl.store(states + place, tl.load(line + place, mask=place < hidden).to(tl.float32), mask=place < hidden)


@triton.jit
def pick_kernel(
    best, best_row, count, token, tokens, positions, past, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Choose the most likely token, the first of equals, and move on by one.

    Tensors:
        best: float32 [count], the largest logit of each of the head's programs.
        best_row: int32 [count], its row.
        token: int64 [1], written.
        tokens: int64, written at index `past`: the token chosen after that many.
        positions: int64 [3], each advanced by one.
        past: int64 [1], advanced by one.
    """
    if PDL:
        gdc_wait()
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    row = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(best + place, mask=place < count, other=float("-inf"))
        index = tl.load(best_row + place, mask=place < count, other=0)
        row = tl.where(value > top, index, row)
        top = tl.maximum(top, value)
    highest = tl.max(top, 0)
    chosen = tl.min(tl.where(top == highest, row, 2147483647), 0).to(tl.int64)
    done = tl.load(past)
    tl.store(token, chosen)
    tl.store(tokens + done, chosen)
    tl.store(past, done + 1)
    for axis in tl.static_range(3):
        tl.store(positions + axis, tl.load(positions + axis) + 1)
