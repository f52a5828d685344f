"""Attention of one new token over a static cache, with everything around it: q/k norms, rotary embedding, cache write.

A program takes one query head and a range of the cache (flash decoding); the last of a head's programs to arrive joins
their results. Within a program every place of a tile keeps its own running softmax, so that threads meet only once, at
the end: a step is too short for more.

Memory would rest meanwhile. So programs also ask for the weights of the products to come, which then are in the GPU's
second cache when they are read.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _head(vector, gain, cos, sin, eps, HALF: tl.constexpr, NORM: tl.constexpr):
    """One head's query or key as two halves, normed (with NORM) and rotated."""
    place = tl.arange(0, HALF)
    low = tl.load(vector + place)
    high = tl.load(vector + HALF + place)
    if NORM:
        factor = 1.0 / tl.sqrt(tl.sum(low * low + high * high, 0) / (2 * HALF) + eps)
        low = low * factor * tl.load(gain + place)
        high = high * factor * tl.load(gain + HALF + place)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _prefetch(weight, words, program, programs):
    """Ask for a program's share of a weight of int32 words, in lines of 128 bytes."""
    lines = words // 32
    share = tl.cdiv(lines, programs)
    for start in range(program * share, (program + 1) * share, 32):
        line = tl.minimum(start + tl.arange(0, 32), lines - 1).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [(weight + line * 32).to(tl.int64)],
            tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def _cached(keys, values, base, start, end, SIZE: tl.constexpr, TILE: tl.constexpr):
    """Halves of keys and values [TILE, HALF] from `start` on, before `end`."""
    token = start + tl.arange(0, TILE)
    old = (token < end)[:, None]
    line = base[None, :] + token[:, None] * SIZE
    half: tl.constexpr = SIZE // 2
    return (
        tl.load(keys + line, mask=old, other=0.0),
        tl.load(keys + line + half, mask=old, other=0.0),
        tl.load(values + line, mask=old, other=0.0),
        tl.load(values + line + half, mask=old, other=0.0),
    )


@triton.jit
def attention_kernel(
    qkv, q_norm, k_norm, cos, sin, keys, values, past, out, part_out, part_top, part_sum, arrived, capacity, eps,
    gate_up, gate_up_words, down, down_words,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, QK_NORM: tl.constexpr,
    SPLITS: tl.constexpr, SHORTEST: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Program (h, s): query head h over the s-th range of the cache.

    Tensors:
        qkv: float32 [(HEADS + 2·KV_HEADS)·2·HALF].
        q_norm: float32 [2·HALF], with QK_NORM; `k_norm` likewise.
        cos: float32 [HALF]; `sin` likewise.
        keys: float [KV_HEADS, capacity, 2·HALF]; `values` likewise; the new token's are written.
        past: int64 [1], tokens already in the cache.
        out: float [HEADS·2·HALF].
        part_out: float32 [HEADS, SPLITS, 2·HALF], scratch.
        part_top: float32 [HEADS, SPLITS], scratch; `part_sum` likewise.
        arrived: int32 [HEADS], zero before and after.
        gate_up: int32 [gate_up_words], weights that are asked for with ASM; `down` likewise.
        SHORTEST: tokens under which a range is not divided further, a multiple of TILE.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    size: tl.constexpr = 2 * HALF
    kv = head // (HEADS // KV_HEADS)
    half = tl.arange(0, HALF)
    if PDL:
        gdc_launch_dependents()
    if ASM:
        program = head * SPLITS + split
        _prefetch(gate_up, gate_up_words, program, HEADS * SPLITS)
        _prefetch(down, down_words, program, HEADS * SPLITS)
    # All this was there before the step's first kernel, which waited for it and ended before the others began.
    place = tl.load(past)
    total = place + 1
    reach = tl.maximum(tl.cdiv(tl.cdiv(total, SPLITS), TILE) * TILE, SHORTEST)
    first = split * reach
    base = kv.to(tl.int64) * capacity * size + half
    if first < total:
        key_low, key_high, value_low, value_high = _cached(keys, values, base, first, place, size, TILE)
        if PDL:
            gdc_wait()
        last = tl.minimum(first + reach, total)
        c = tl.load(cos + half)
        s = tl.load(sin + half)
        q_low, q_high = _head(qkv + head * size, q_norm, c, s, eps, HALF, QK_NORM)
        k_low, k_high = _head(qkv + (HEADS + kv) * size, k_norm, c, s, eps, HALF, QK_NORM)
        scale = LOG2_E / tl.sqrt(float(size))
        q_low *= scale
        q_high *= scale
        dtype = keys.dtype.element_ty
        k_low = k_low.to(dtype).to(tl.float32)  # as it will be read from the cache
        k_high = k_high.to(dtype).to(tl.float32)
        v = qkv + (HEADS + KV_HEADS + kv) * size + half
        v_low = tl.load(v).to(dtype).to(tl.float32)
        v_high = tl.load(v + HALF).to(dtype).to(tl.float32)
        if (last == total) & (head % (HEADS // KV_HEADS) == 0):
            tl.store(keys + base + place * size, k_low.to(dtype))
            tl.store(keys + base + place * size + HALF, k_high.to(dtype))
            tl.store(values + base + place * size, v_low.to(dtype))
            tl.store(values + base + place * size + HALF, v_high.to(dtype))

        top = tl.full([TILE], -1e30, tl.float32)  # finite: a difference of two infinities is no number
        weight = tl.zeros([TILE], tl.float32)
        out_low = tl.zeros([TILE, HALF], tl.float32)
        out_high = tl.zeros([TILE, HALF], tl.float32)
        end = tl.minimum(place, last)
        for start in range(first, end, TILE):
            seen = start + tl.arange(0, TILE) < end
            score = tl.sum(key_low.to(tl.float32) * q_low[None, :] + key_high.to(tl.float32) * q_high[None, :], 1)
            score = tl.where(seen, score, -1e30)
            higher = tl.maximum(top, score)
            shrink = tl.exp2(top - higher)
            share = tl.where(seen, tl.exp2(score - higher), 0.0)
            weight = weight * shrink + share
            out_low = out_low * shrink[:, None] + value_low.to(tl.float32) * share[:, None]
            out_high = out_high * shrink[:, None] + value_high.to(tl.float32) * share[:, None]
            top = higher
            key_low, key_high, value_low, value_high = _cached(keys, values, base, start + TILE, end, size, TILE)
        # The new token is not read back from where it is written: other threads would have to wait for it.
        newest = tl.where(last == total, tl.sum(q_low * k_low + q_high * k_high, 0), -1e30)
        highest = tl.maximum(tl.max(top, 0), newest)
        factor = tl.exp2(top - highest)
        own = tl.where(last == total, tl.exp2(newest - highest), 0.0)
        all_low = tl.sum(out_low * factor[:, None], 0) + own * v_low
        all_high = tl.sum(out_high * factor[:, None], 0) + own * v_high
        all_weight = tl.sum(weight * factor, 0) + own

        answer = out + head * size + half
        active = tl.cdiv(total, reach)
        if active == 1:
            tl.store(answer, (all_low / all_weight).to(out.dtype.element_ty))
            tl.store(answer + HALF, (all_high / all_weight).to(out.dtype.element_ty))
        else:
            slot = head * SPLITS + split
            tl.store(part_top + slot, highest)
            tl.store(part_sum + slot, all_weight)
            tl.store(part_out + slot * size + half, all_low)
            tl.store(part_out + slot * size + HALF + half, all_high)
            tl.debug_barrier()
            if tl.atomic_add(arrived + head, 1, sem="acq_rel") == active - 1:
                tl.store(arrived + head, 0)
                slots = head * SPLITS + tl.arange(0, SPLITS)
                done = tl.arange(0, SPLITS) < active
                tops = tl.load(part_top + slots, mask=done, other=-1e30, cache_modifier=".cg")
                sums = tl.load(part_sum + slots, mask=done, other=0.0, cache_modifier=".cg")
                factors = tl.exp2(tops - tl.max(tops, 0))
                factors = factors / tl.sum(sums * factors, 0)
                parts = part_out + slots[:, None] * size + half[None, :]
                lows = tl.load(parts, mask=done[:, None], other=0.0, cache_modifier=".cg")
                highs = tl.load(parts + HALF, mask=done[:, None], other=0.0, cache_modifier=".cg")
                tl.store(answer, tl.sum(lows * factors[:, None], 0).to(out.dtype.element_ty))
                tl.store(answer + HALF, tl.sum(highs * factors[:, None], 0).to(out.dtype.element_ty))
