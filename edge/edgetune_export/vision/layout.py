"""Where the packed patches of pictures lie, and which of them attend to each other, as values of a graph.

Patches are stored picture by picture, frame by frame, in merge blocks (block row, block column, row in block, column
in block). Attention is among the patches of a frame or, in Qwen2.5-VL's windowed layers, of a window of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgetune_export.graph import GraphBuilder


class Whole:
    """Arithmetic of int64 values in a graph, with whole numbers for constants."""

    def __init__(self, graph: GraphBuilder) -> None:
        self.graph = graph

    def number(self, value: int | list[int]) -> ir.Value:
        """An int64 constant."""
        name = "whole." + "_".join(map(str, value if isinstance(value, list) else [value]))
        return self.graph.constant(f"{name}.list" if isinstance(value, list) else name, np.array(value, np.int64))

    def __call__(self, kind: str, left: ir.Value, right: ir.Value | int) -> ir.Value:
        """`Add`, `Sub`, `Mul`, `Div` (rounds down what is not negative), `Mod`, `Max`, ... of two."""
        return self.graph.op(kind, left, self.number(right) if isinstance(right, int) else right)

    def total(self, value: ir.Value) -> ir.Value:
        """The sum of all elements, a scalar."""
        return self.graph.op("ReduceSum", value, keepdims=0)

    def up(self, value: ir.Value, divisor: int) -> ir.Value:
        """Quotients rounded up."""
        return self("Div", self("Add", value, divisor - 1), divisor)


@dataclass(frozen=True)
class Segments:
    """Sets of patches that attend to each other only: S of them, each of at most L patches.

    Attributes:
        patches: int64 [S, L], the patches of each, 0 where there are fewer.
        bias: float32 [S, 1, 1, L], added to attention scores: -inf where there is no patch to attend to.
        place: int64 [P], where each patch is in the flattened [S · L].
    """

    patches: ir.Value
    bias: ir.Value
    place: ir.Value


class Layout:
    """Where each of P packed patches of N pictures lies; its values are int64 [P] where nothing else is said.

    Args:
        graph: receives the nodes.
        patches: P, a scalar.
        grid: int64 [N, 3], frames, rows and columns of patches of each picture.
        merge: side of a merge block, in patches.
    """

    def __init__(self, graph: GraphBuilder, patches: ir.Value, grid: ir.Value, merge: int) -> None:
        self.graph, self.whole, self.grid = graph, (whole := Whole(graph)), grid
        self.frames, self.rows, self.columns = (  # each [N]
            graph.op("Gather", grid, whole.number(axis), axis=1) for axis in range(3)
        )
        counts = whole("Mul", self.frames, whole("Mul", self.rows, self.columns))
        ends = graph.op("CumSum", counts, whole.number(0))
        index = graph.op("Range", whole.number(0), patches, whole.number(1))
        ended = graph.op("GreaterOrEqual", self._across(index), ends)
        self.picture = graph.op(
            "ReduceSum", graph.op("Cast", ended, to=ir.DataType.INT64), whole.number([1]), keepdims=0
        )
        self.height, self.width = self.of_picture(self.rows), self.of_picture(self.columns)
        self.index = index
        area = whole("Mul", self.height, self.width)
        behind = whole("Sub", index, self.of_picture(whole("Sub", ends, counts)))
        self.frame, self.within = whole("Div", behind, area), whole("Mod", behind, area)
        blocks = whole("Div", self.width, merge)
        block, inner = whole("Div", self.within, merge * merge), whole("Mod", self.within, merge * merge)
        self.row = whole("Add", whole("Mul", whole("Div", block, blocks), merge), whole("Div", inner, merge))
        self.column = whole("Add", whole("Mul", whole("Mod", block, blocks), merge), whole("Mod", inner, merge))

    def of_picture(self, values: ir.Value) -> ir.Value:
        """Each patch's own of one value [N] a picture."""
        return self.graph.op("Gather", values, self.picture)

    def _across(self, value: ir.Value) -> ir.Value:
        return self.graph.op("Unsqueeze", value, self.whole.number([1]))

    def is_one_frame(self) -> ir.Value:
        """Whether all patches are of one frame: a bool scalar."""
        return self.graph.op("Equal", self.whole.total(self.frames), self.whole.number(1))

    def frame_ids(self) -> ir.Value:
        """One number a frame: the index of its first patch."""
        return self.whole("Sub", self.index, self.within)

    def window_ids(self, side: int) -> ir.Value:
        """One number a window of `side` patches squared. A frame has at least as many patches as windows."""
        whole = self.whole
        row, column = whole("Div", self.row, side), whole("Div", self.column, side)
        number = whole("Add", whole("Mul", row, whole.up(self.width, side)), column)
        return whole("Add", self.frame_ids(), number)

    def by_frame(self) -> Segments:
        """The patches of each frame; L is the size of the largest."""
        whole = self.whole
        before = self.of_picture(self._before(self.frames))
        longest = self.graph.op("ReduceMax", whole("Mul", self.rows, self.columns), keepdims=0)
        return self._segments(whole("Add", before, self.frame), self.within, whole.total(self.frames), longest)

    def by_window(self, side: int) -> Segments:
        """The patches of each window of `side` patches squared; those at the edges hold fewer."""
        whole = self.whole
        down, across = whole.up(self.rows, side), whole.up(self.columns, side)  # windows of a frame, each [N]
        of_frame = whole("Mul", down, across)
        count = whole("Mul", self.frames, of_frame)
        row, column = whole("Div", self.row, side), whole("Div", self.column, side)
        window = whole("Add", whole("Mul", row, self.of_picture(across)), column)
        of_frames = whole("Add", whole("Mul", self.frame, self.of_picture(of_frame)), window)
        place = whole("Add", whole("Mul", whole("Mod", self.row, side), side), whole("Mod", self.column, side))
        number = whole("Add", self.of_picture(self._before(count)), of_frames)
        return self._segments(number, place, whole.total(count), whole.number(side * side))

    def _before(self, counts: ir.Value) -> ir.Value:
        """How many there are of the pictures before each."""
        return self.graph.op("CumSum", counts, self.whole.number(0), exclusive=1)

    def _segments(self, segment: ir.Value, position: ir.Value, count: ir.Value, longest: ir.Value) -> Segments:
        graph, whole = self.graph, self.whole
        place = whole("Add", whole("Mul", segment, longest), position)
        absent = ir.tensor(np.array([-1], np.int64))
        empty = graph.op("ConstantOfShape", self._list(whole("Mul", count, longest)), value=absent)
        filled = graph.op("ScatterND", empty, self._across(place), self.index)
        shape = graph.op("Concat", self._list(count), self._list(longest), axis=0)
        table = graph.op("Reshape", filled, shape)
        there = graph.op("GreaterOrEqual", table, whole.number(0))
        zero, never = (graph.constant(f"bias.{name}", np.array(x, np.float32)) for name, x in BIASES.items())
        bias = graph.op("Unsqueeze", graph.op("Where", there, zero, never), whole.number([1, 2]))
        return Segments(whole("Max", table, 0), bias, place)

    def _list(self, scalar: ir.Value) -> ir.Value:
        return self.graph.op("Reshape", scalar, self.whole.number([1]))


BIASES = {"zero": 0.0, "never": -np.inf}
"""What is added to the score of a patch that may be attended to, and of one that may not."""
