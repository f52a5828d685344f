"""Attention among packed patches, in the operators that an engine is good at.

`FusedAttention` is onnxruntime's operator, which never holds the scores of all pairs; `SegmentedAttention` is standard
operators; both compute windows as windows. `MaskedAttention` is for TensorRT, whose shapes must not depend on what a
grid says: one frame a call, and windows under a mask over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edgetune_export.graph import MICROSOFT, Dim, GraphBuilder, cast_float
from edgetune_export.vision.layout import BIASES, Layout, Segments, Whole


@dataclass(frozen=True)
class Heads:
    """Their number, the size d of each, and the dtype of the activations."""

    heads: int
    size: int
    dtype: ir.DataType

    @property
    def width(self) -> int:
        """Of all heads."""
        return self.heads * self.size


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of each patch's angles, float32 [P, d / 2]: dimension i turns with dimension i + d / 2."""

    cos: ir.Value
    sin: ir.Value


class Attention(Protocol):
    """Attention over all heads; query, key, value and result are [P, heads · d], rotated and not yet scaled."""

    def rotate(self, states: ir.Value, rotary: Rotary) -> ir.Value:
        """Turn queries or keys [P, heads · d], in float32 whatever the dtype of the activations."""

    def __call__(self, query: ir.Value, key: ir.Value, value: ir.Value, window: int | None) -> ir.Value:
        """Mix the values of a patch's frame, or of its window of `window` patches squared."""


class SegmentedAttention:
    """Softmax(q · kᵀ / √d) · v of each segment, in standard operators. [S, heads, L, L] scores are held."""

    def __init__(self, graph: GraphBuilder, layout: Layout, shape: Heads) -> None:
        self.graph, self.layout, self.shape = graph, layout, shape
        self._segments: dict[int | None, Segments] = {}

    def __call__(self, query: ir.Value, key: ir.Value, value: ir.Value, window: int | None) -> ir.Value:
        """Mix the values of a patch's segment."""
        graph = self.graph
        segments = self._of(window)
        parts = [graph.op("Gather", part, segments.patches) for part in (query, key, value)]  # [S, L, heads · d]
        mixed = self.mix(parts[0], parts[1], parts[2], segments.bias)
        flat = graph.op("Reshape", mixed, self.layout.whole.number([-1, self.shape.width]))
        return graph.op("Gather", flat, segments.place)

    def rotate(self, states: ir.Value, rotary: Rotary) -> ir.Value:
        """Turn queries or keys."""
        return turned(self.graph, states, self.shape, rotary)

    def mix(self, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Attention within each of S segments: all values are [S, L, heads · d], the bias is that of the segments."""
        return decomposed(self.graph, (query, key, value), self.shape, bias)

    def _of(self, window: int | None) -> Segments:
        if window not in self._segments:
            segments = self.layout.by_frame() if window is None else self.layout.by_window(window)
            bias = segments.bias
            if self.shape.dtype != ir.DataType.FLOAT:
                bias = self.graph.op("Cast", bias, to=self.shape.dtype)
            self._segments[window] = replace(segments, bias=bias)
        return self._segments[window]


class FusedAttention(SegmentedAttention):
    """The same as onnxruntime's MultiHeadAttention, which needs no bias, and no scores, where all are one frame."""

    def __init__(self, graph: GraphBuilder, layout: Layout, shape: Heads) -> None:
        super().__init__(graph, layout, shape)
        self._one_frame = layout.is_one_frame()
        self._places: ir.Value | None = None

    def rotate(self, states: ir.Value, rotary: Rotary) -> ir.Value:
        """Turn queries or keys with onnxruntime's operator, which wants a table by position: ours is by patch."""
        if self.shape.dtype != ir.DataType.FLOAT:  # it would compute in float16
            return super().rotate(states, rotary)
        op, whole = self.graph.op, self.layout.whole
        if self._places is None:
            count = op("Squeeze", op("Shape", rotary.cos, start=0, end=1), whole.number([0]))
            places = op("Range", whole.number(0), count, whole.number(1))
            self._places = op("Unsqueeze", places, whole.number([0]))
        wide = op("Unsqueeze", states, whole.number([0]))
        found = op("RotaryEmbedding", wide, self._places, rotary.cos, rotary.sin, domain=MICROSOFT)
        return op("Squeeze", found, whole.number([0]))

    def __call__(self, query: ir.Value, key: ir.Value, value: ir.Value, window: int | None) -> ir.Value:
        """Mix the values of a patch's segment."""
        graph = self.graph

        def by_segment() -> ir.Value:
            return super(FusedAttention, self).__call__(query, key, value, window)

        def at_once() -> ir.Value:
            first = self.layout.whole.number([0])
            parts = [graph.op("Unsqueeze", part, first) for part in (query, key, value)]
            return graph.op("Squeeze", self.mix(parts[0], parts[1], parts[2], None), first)

        if window is not None:
            return by_segment()
        self._of(None)  # made outside of the branch: it is shared by all layers
        return graph.choose(self._one_frame, at_once, by_segment)

    def mix(self, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Attention within each segment."""
        return fused(self.graph, (query, key, value), self.shape, bias)


class MaskedAttention:
    """Softmax(q · kᵀ / √d + mask) · v over the patches of one frame, without a mask where no window asks for it."""

    def __init__(self, graph: GraphBuilder, layout: Layout, shape: Heads) -> None:
        self.graph, self.layout, self.shape = graph, layout, shape
        self._masks: dict[int, ir.Value] = {}

    def __call__(self, query: ir.Value, key: ir.Value, value: ir.Value, window: int | None) -> ir.Value:
        """Mix the values of the frame, or of a patch's window."""
        graph = self.graph
        first = self.layout.whole.number([0])
        parts = [graph.op("Unsqueeze", part, first) for part in (query, key, value)]
        mask = None if window is None else self._mask(window)
        mixed = decomposed(graph, (parts[0], parts[1], parts[2]), self.shape, mask)
        return graph.op("Squeeze", mixed, first)

    def rotate(self, states: ir.Value, rotary: Rotary) -> ir.Value:
        """Turn queries or keys."""
        return turned(self.graph, states, self.shape, rotary)

    def _mask(self, window: int) -> ir.Value:
        """[1, 1, P, P]."""
        if window not in self._masks:
            graph, ids, dtype = self.graph, self.layout.window_ids(window), self.shape.dtype
            axes = [self.layout.whole.number([axis]) for axis in (0, 1)]
            same = graph.op("Equal", graph.op("Unsqueeze", ids, axes[1]), graph.op("Unsqueeze", ids, axes[0]))
            zero, never = (
                graph.constant(f"bias.{name}.{dtype}", cast_float(np.array(value, np.float32), dtype))
                for name, value in BIASES.items()
            )
            mask = graph.op("Where", same, zero, never)
            self._masks[window] = graph.op("Unsqueeze", mask, self.layout.whole.number([0, 1]))
        return self._masks[window]


def turned(graph: GraphBuilder, states: ir.Value, shape: Heads, rotary: Rotary) -> ir.Value:
    """Rotary embedding of states [P, heads · d] in standard operators and float32."""
    whole = Whole(graph)
    each = graph.op("Reshape", states, whole.number([-1, shape.heads, shape.size]))
    if shape.dtype != ir.DataType.FLOAT:
        each = graph.op("Cast", each, to=ir.DataType.FLOAT)
    first, second = graph.ops("Split", each, outputs=2, axis=-1, num_outputs=2)  # [P, heads, d / 2]
    cos, sin = (graph.op("Unsqueeze", table, whole.number([1])) for table in (rotary.cos, rotary.sin))

    def product(one: ir.Value, other: ir.Value) -> ir.Value:
        return graph.op("Mul", one, other)

    halves = (
        graph.op("Sub", product(first, cos), product(second, sin)),
        graph.op("Add", product(second, cos), product(first, sin)),
    )
    joined = graph.op("Concat", *halves, axis=-1)
    if shape.dtype != ir.DataType.FLOAT:
        joined = graph.op("Cast", joined, to=shape.dtype)
    return graph.op("Reshape", joined, whole.number([-1, shape.width]))


def decomposed(
    graph: GraphBuilder, parts: tuple[ir.Value, ir.Value, ir.Value], shape: Heads, bias: ir.Value | None
) -> ir.Value:
    """Attention of [S, L, heads · d] in standard operators; a bias is added to the scores [S, heads, L, L]."""
    whole = Whole(graph)
    split = whole.number([0, 0, shape.heads, shape.size])
    query, key, value = (graph.op("Reshape", part, split) for part in parts)
    # The root on either side, so that no product leaves the range of float16.
    scale = graph.constant("root_scale", cast_float(np.array(shape.size**-0.25, np.float32), shape.dtype))
    query = graph.op("Mul", graph.op("Transpose", query, perm=[0, 2, 1, 3]), scale)
    key = graph.op("Mul", graph.op("Transpose", key, perm=[0, 2, 3, 1]), scale)
    scores = graph.op("MatMul", query, key)
    if bias is not None:
        scores = graph.op("Add", scores, bias)
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), graph.op("Transpose", value, perm=[0, 2, 1, 3]))
    joined = whole.number([0, 0, shape.width])
    return graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)


def fused(
    graph: GraphBuilder, parts: tuple[ir.Value, ir.Value, ir.Value], shape: Heads, bias: ir.Value | None
) -> ir.Value:
    """Attention of [S, L, heads · d] as onnxruntime's MultiHeadAttention; a bias is added to the scores."""
    biased: list[ir.Value | None] = []
    if bias is not None:  # it has to have a row a query
        rows = graph.op("Shape", parts[0], start=1, end=2)
        one = Whole(graph).number([1])
        expanded = graph.op("Concat", one, one, rows, one, axis=0)
        biased = [None, None, graph.op("Expand", bias, expanded)]
    return graph.op("MultiHeadAttention", *parts, *biased, num_heads=shape.heads, domain=MICROSOFT)


Mix = Callable[[GraphBuilder, tuple[ir.Value, ir.Value, ir.Value], Heads, ir.Value | None], ir.Value]
"""Attention within each of S sequences of L tokens; values and result are [S, L, heads · d]."""


@dataclass(frozen=True)
class Operators:
    """How an engine attends.

    Attributes:
        packed: among patches that lie one picture after the other.
        mix: among the patches of tiles of one size.
        pictures: how many packed pictures a call has, free or fixed.
    """

    packed: Callable[[GraphBuilder, Layout, Heads], Attention]
    mix: Mix
    pictures: Dim = "images"


FUSED = Operators(FusedAttention, fused)
"""For onnxruntime."""
STANDARD = Operators(SegmentedAttention, decomposed)
"""For any engine with the standard operators."""
ONE_FRAME = Operators(MaskedAttention, decomposed, pictures=1)
"""For TensorRT."""
