"""Attention of a whole frame with int8 products, for CPUs: both products of softmax(q · kᵀ / √d) · v are integer ones.

The scores of a block of queries of one head are held at a time. Keys and values are rounded without their mean over the
frame: a mean of the keys moves all scores of a query alike, which softmax does not see, and that of the values is added
at the end, because shares sum to 1. So what rounds to a share of nothing counts as the mean and is not lost. A query's
shares have 256 levels up to its largest. Keys and values have 7 bits, as weights do and for the same reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgetune_export.decoder.dialects.ort import MICROSOFT
from edgetune_export.graph import GraphBuilder
from edgetune_export.vision.attention import FusedAttention, Heads
from edgetune_export.vision.layout import Layout
from edgetune_export.vision.products import WEIGHT_LIMIT

BLOCK = 512
"""Most queries of a head at a time. Their scores stay in a core's cache, and keys are arranged for the product once."""
LEVELS = 255
MAX_ERROR = 0.04
"""Largest relative error of a layer's attention, as of its linear layers."""


class Int8Attention(FusedAttention):
    """Int8 products in the layers that are named, for one frame a call; otherwise as `FusedAttention`.

    Args:
        layers: names of attention modules.
    """

    def __init__(self, graph: GraphBuilder, layout: Layout, shape: Heads, layers: Collection[str]) -> None:
        super().__init__(graph, layout, shape)
        self._layers = layers

    def of_frame(self, query: ir.Value, key: ir.Value, value: ir.Value, layer: str) -> ir.Value:
        """Attention among all patches."""
        if layer not in self._layers:
            return super().of_frame(query, key, value, layer)
        graph, op, whole, shape = self.graph, self.graph.op, self.layout.whole, self.shape
        count = op("Squeeze", op("Shape", query, start=0, end=1), whole.number([0]))
        blocks = whole.up(count, BLOCK)
        rows = whole("Div", whole("Sub", whole("Add", count, blocks), 1), blocks)
        queries = self._blocks(query, count, blocks, rows)
        (key, _), (value, mean) = self._without_mean(key), self._without_mean(value)
        each = whole.number([-1, shape.heads, shape.size])
        keys = op("Transpose", op("Reshape", key, each), perm=[1, 2, 0])  # [heads, d, P]
        values = op("Transpose", op("Reshape", value, each), perm=[1, 0, 2])  # [heads, P, d]

        def block(number: ir.Value) -> ir.Value:
            head = whole("Div", number, blocks)
            return self._mix_int8(*(op("Gather", *pair) for pair in ((queries, number), (keys, head), (values, head))))

        mixed = graph.repeat(whole("Mul", blocks, shape.heads), block)  # [heads · blocks, rows, d]
        mixed = op("Transpose", op("Reshape", mixed, whole.number([shape.heads, -1, shape.size])), perm=[1, 0, 2])
        mixed = op("Slice", mixed, whole.number([0]), op("Unsqueeze", count, whole.number([0])), whole.number([0]))
        return op("Add", op("Reshape", mixed, whole.number([-1, shape.width])), mean)

    def _blocks(self, query: ir.Value, count: ir.Value, blocks: ir.Value, rows: ir.Value) -> ir.Value:
        """Scaled queries as [heads · blocks, rows, d]; zeros follow the last."""
        op, whole, shape = self.graph.op, self.layout.whole, self.shape
        first = whole.number([0])
        missing = op("Unsqueeze", whole("Sub", whole("Mul", rows, blocks), count), first)
        scaled = op("Mul", query, self.graph.constant("root", np.array(shape.size**-0.5, np.float32)))
        padded = op("Pad", scaled, op("Concat", whole.number([0, 0]), missing, first, axis=0))
        row, ends = op("Unsqueeze", rows, first), whole.number([shape.heads, shape.size])
        split = op("Concat", whole.number([-1]), row, ends, axis=0)
        joined = op("Concat", whole.number([-1]), row, whole.number([shape.size]), axis=0)
        return op("Reshape", op("Transpose", op("Reshape", padded, split), perm=[2, 0, 1, 3]), joined)

    def _without_mean(self, states: ir.Value) -> tuple[ir.Value, ir.Value]:
        mean = self.graph.op("ReduceMean", states, self.layout.whole.number([0]), keepdims=1)
        return self.graph.op("Sub", states, mean), mean

    def _mix_int8(self, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """[rows, d] of queries [rows, d], keys [d, P] and values [P, d] of one head."""
        op, last = self.graph.op, self.layout.whole.number([1])
        codes, scale, zero = self.graph.ops("DynamicQuantizeLinear", query, outputs=3)
        keys, key_scale = self._rounded(key)
        values, value_scale = self._rounded(value)
        scores = op("MatMulIntegerToFloat", codes, keys, scale, key_scale, zero, domain=MICROSOFT)
        shares = op("Softmax", scores, axis=-1)
        level = self.graph.constant("level", np.array(1 / LEVELS, np.float32))
        steps = op("Mul", op("ReduceMax", shares, last, keepdims=1), level)  # [rows, 1]
        codes = op("QuantizeLinear", shares, op("Squeeze", steps, last), axis=0)
        one = self.graph.constant("real.one", np.array(1, np.float32))
        return op("Mul", op("MatMulIntegerToFloat", codes, values, one, value_scale, domain=MICROSOFT), steps)

    def _rounded(self, states: ir.Value) -> tuple[ir.Value, ir.Value]:
        """int8 codes of a matrix, and their scale."""
        op, constant = self.graph.op, self.graph.constant
        largest = op("ReduceMax", op("Abs", states), keepdims=0)
        largest = op("Max", largest, constant("tiny", np.array(np.finfo(np.float32).tiny, np.float32) * WEIGHT_LIMIT))
        scale = op("Mul", largest, constant("seventh", np.array(1 / WEIGHT_LIMIT, np.float32)))
        return op("QuantizeLinear", states, scale, constant("int8.zero", np.array(0, np.int8))), scale


@torch.no_grad()
def accurate_attention(tower: Any, images: Iterable[tuple[Tensor, Tensor]]) -> frozenset[str]:
    """Names of the attention modules over whole frames that stay accurate with int8 products, such as "blocks.3.attn".

    Args:
        tower: of transformers.
        images: float32 patches [P, K] and int64 grids [N, 3].
    """
    errors: dict[str, float] = {}

    def observe(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            states = options["hidden_states"] if "hidden_states" in options else inputs[0]
            joint = module.qkv(states).reshape(len(states), 3, module.num_heads, -1)
            query, key, value = joint.permute(1, 2, 0, 3).unbind()  # each [heads, P, d]
            cos, sin = options["position_embeddings"]
            query, key = (part * cos + _turned(part) * sin for part in (query, key))
            ends = options["cu_seqlens"].tolist()
            for start, end in pairwise(ends):
                frame = [part[:, start:end] for part in (query, key, value)]
                exact = nn.functional.scaled_dot_product_attention(*(part[None] for part in frame))[0]
                error = float((_attended(*frame) - exact).norm() / exact.norm())
                errors[name] = max(errors.get(name, 0.0), error)

        return hook

    frames = getattr(tower.config, "fullatt_block_indexes", None)
    hooks = [
        block.attn.register_forward_pre_hook(observe(f"blocks.{number}.attn"), with_kwargs=True)
        for number, block in enumerate(tower.blocks)
        if frames is None or number in frames
    ]
    try:
        for image in images:
            tower(*image)
    finally:
        for handle in hooks:
            handle.remove()
    return frozenset(name for name, error in errors.items() if error <= MAX_ERROR)


def _turned(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What int8 products give of [heads, P, d]."""
    query = query * query.shape[-1] ** -0.5
    low, high = query.amin((1, 2), keepdim=True).clamp(max=0), query.amax((1, 2), keepdim=True).clamp(min=0)
    step = ((high - low) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    mean = value.mean(1, keepdim=True)
    keys, values = (_coarse(part - part.mean(1, keepdim=True)) for part in (key, value))
    shares = torch.softmax(((query / step).round() * step) @ keys.mT, dim=-1)
    steps = shares.amax(-1, keepdim=True) / LEVELS
    return (shares / steps).round() * steps @ values + mean


def _coarse(states: Tensor) -> Tensor:
    scale = states.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / WEIGHT_LIMIT
    return (states / scale).round() * scale
