"""What a pass over several tokens does between its products; a program takes one token, or a few of one head.

How many tokens there are, and how many came before, is read on the device: a recorded pass serves every number of
tokens up to the one it was recorded for. Rows beyond them are computed like others and never written to the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_norm_kernel(
    states, product, features, gain, out, hidden, eps, ADD: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Add to the residual stream what the last layer gave, and norm it for the next product; program: a token.

    Tensors:
        states: float32 [tokens, hidden]; written where something is added.
        product: float [tokens, hidden], added with ADD.
        features: float32 [tokens, hidden], added with FEATURES.
        gain: float32 [hidden].
        out: float [tokens, hidden], written.
    """
    place = tl.arange(0, BLOCK)
    here = place < hidden
    line = tl.program_id(0).to(tl.int64) * hidden + place
    value = tl.load(states + line, mask=here, other=0.0)
    if ADD:
        value += tl.load(product + line, mask=here, other=0.0).to(tl.float32)
    if FEATURES:
        value += tl.load(features + line, mask=here, other=0.0)
    if ADD or FEATURES:
        tl.store(states + line, value, mask=here)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / hidden + eps)
    value *= factor * tl.load(gain + place, mask=here, other=0.0)
    tl.store(out + line, value.to(out.dtype.element_ty), mask=here)


@triton.jit
def place_kernel(
    qkv, bias, q_norm, k_norm, positions, rope, queries, keys, values, past, count, tokens, capacity, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr, QK_NORM: tl.constexpr,
):  # fmt: skip
    """Norm and rotate queries and keys, and write keys and values to the cache; program (t, h): head h of token t.

    Tensors:
        qkv: float [tokens, (HEADS + 2·KV_HEADS)·2·HALF].
        bias: float32 [(HEADS + 2·KV_HEADS)·2·HALF], with BIAS.
        q_norm: float32 [2·HALF], with QK_NORM; `k_norm` likewise.
        positions: int64 [3, tokens] on the axes of `rope`.
        rope: float32 [3, HALF]; angles = positions @ rope.
        queries: float [tokens, HEADS·2·HALF], written, scaled for `read_kernel`.
        keys: float [KV_HEADS, capacity, 2·HALF]; `values` likewise; those of the first `count` tokens are written.
        past: int64 [1], tokens already in the cache; `count` likewise, tokens now.
    """
    token = tl.program_id(0)
    head = tl.program_id(1)
    size: tl.constexpr = 2 * HALF
    half = tl.arange(0, HALF)
    line = token.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * size) + head * size + half
    low = tl.load(qkv + line).to(tl.float32)
    high = tl.load(qkv + line + HALF).to(tl.float32)
    if BIAS:
        low += tl.load(bias + head * size + half)
        high += tl.load(bias + head * size + HALF + half)
    if head < HEADS + KV_HEADS:
        if QK_NORM:
            gain = q_norm
            if head >= HEADS:
                gain = k_norm
            factor = 1.0 / tl.sqrt(tl.sum(low * low + high * high, 0) / size + eps)
            low *= factor * tl.load(gain + half)
            high *= factor * tl.load(gain + HALF + half)
        angle = tl.zeros([HALF], tl.float32)
        for axis in tl.static_range(3):
            angle += tl.load(positions + axis * tokens + token).to(tl.float32) * tl.load(rope + axis * HALF + half)
        cos = tl.cos(angle)
        sin = tl.sin(angle)
        turned = low * cos - high * sin
        high = high * cos + low * sin
        low = turned
    if head < HEADS:
        scale = LOG2_E / tl.sqrt(float(size))
        to = queries + token.to(tl.int64) * (HEADS * size) + head * size + half
        tl.store(to, (low * scale).to(queries.dtype.element_ty))
        tl.store(to + HALF, (high * scale).to(queries.dtype.element_ty))
    elif token < tl.load(count):
        place = tl.load(past) + token
        if head < HEADS + KV_HEADS:
            to = keys + ((head - HEADS).to(tl.int64) * capacity + place) * size + half
            tl.store(to, low.to(keys.dtype.element_ty))
            tl.store(to + HALF, high.to(keys.dtype.element_ty))
        else:
            to = values + ((head - HEADS - KV_HEADS).to(tl.int64) * capacity + place) * size + half
            tl.store(to, low.to(values.dtype.element_ty))
            tl.store(to + HALF, high.to(values.dtype.element_ty))


@triton.jit
def read_kernel(
    queries, keys, values, past, count, sees, chosen, out, part_out, part_top, part_sum, tokens, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Attention of new tokens over the cache, which has them already; program (b, h, s): ROWS tokens of query head h.

    With several SPLITS a program reads the s-th range of the cache, and `join_kernel` joins what they found.

    Tensors:
        queries: float [tokens, HEADS·SIZE], scaled by log2(e) / sqrt(SIZE).
        keys: float [KV_HEADS, capacity, SIZE]; `values` likewise.
        past: int64 [1]; `count` likewise.
        sees: uint8 [tokens, capacity], whether a token sees another before it; asked where `chosen` is not 0.
        chosen: int64 [1].
        out: float [tokens, HEADS·SIZE], written without splits.
        part_out: float32 [SPLITS, tokens, HEADS·SIZE], written with splits.
        part_top: float32 [SPLITS, tokens, HEADS], written with splits; `part_sum` likewise.
        TILE: tokens of the cache read at once.
    """
    head = tl.program_id(1)
    kv = (head // (HEADS // KV_HEADS)).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    here = row < tokens
    line = row[:, None].to(tl.int64) * (HEADS * SIZE) + head * SIZE + column[None, :]
    query = tl.load(queries + line, mask=here[:, None], other=0.0)
    before = tl.load(past)
    new = tl.load(count)
    asked = here & (tl.load(chosen + row * 0) != 0)
    end = before + tl.minimum(new, tl.program_id(0) * ROWS + ROWS)
    top = tl.full([ROWS], -1e30, tl.float32)  # finite: a difference of two infinities is no number
    weight = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, SIZE], tl.float32)
    first = 0
    last = end
    if SPLITS > 1:
        reach = tl.cdiv(tl.cdiv(end, SPLITS), TILE) * TILE
        first = tl.program_id(2) * reach
        last = tl.minimum(first + reach, end)
    for start in range(first, last, TILE):
        token = start + tl.arange(0, TILE)
        inside = token < last
        cached = kv * capacity * SIZE + token[:, None].to(tl.int64) * SIZE + column[None, :]
        key = tl.load(keys + cached, mask=inside[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        seen = inside[None, :] & (token[None, :] <= before + row[:, None])
        line_sees = sees + row[:, None].to(tl.int64) * capacity + token[None, :]
        seen &= tl.load(line_sees, mask=seen & asked[:, None], other=1) != 0
        score = tl.where(seen, score, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
        shrink = tl.exp2(top - higher)
        weight = weight * shrink + tl.sum(share, 1)
        value = tl.load(values + cached, mask=inside[:, None], other=0.0)
        mixed = tl.dot(share.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
        top = higher
    if SPLITS > 1:
        slot = (tl.program_id(2) * tokens + row) * HEADS + head
        tl.store(part_top + slot, top, mask=here)
        tl.store(part_sum + slot, weight, mask=here)
        tl.store(part_out + slot[:, None].to(tl.int64) * SIZE + column[None, :], mixed, mask=here[:, None])
    else:
        mixed = mixed / tl.maximum(weight, 1e-30)[:, None]
        tl.store(out + line, mixed.to(out.dtype.element_ty), mask=here[:, None])


@triton.jit
def join_kernel(
    part_out, part_top, part_sum, out, tokens, HEADS: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """Join what `read_kernel` found in ranges of the cache; program (t, h): head h of token t."""
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, SIZE)
    slot = (split * tokens + tl.program_id(0)) * HEADS + tl.program_id(1)
    top = tl.load(part_top + slot)
    factor = tl.exp2(top - tl.max(top, 0))
    weight = tl.sum(tl.load(part_sum + slot) * factor, 0)
    parts = tl.load(part_out + slot[:, None].to(tl.int64) * SIZE + column[None, :])
    mixed = tl.sum(parts * factor[:, None], 0) / tl.maximum(weight, 1e-30)
    line = (tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)) * SIZE + column
    tl.store(out + line, mixed.to(out.dtype.element_ty))


@triton.jit
def glu_kernel(gate_up, out, intermediate, BLOCK: tl.constexpr):
    """Write silu(first half) · second half of each row; program (t, b): a part of token t.

    Tensors:
        gate_up: float [tokens, 2·intermediate].
        out: float [tokens, intermediate].
    """
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = place < intermediate
    gate = tl.load(gate_up + token * 2 * intermediate + place, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * intermediate + intermediate + place, mask=here, other=0.0).to(tl.float32)
    tl.store(
        out + token * intermediate + place, (up * gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty), mask=here
    )
