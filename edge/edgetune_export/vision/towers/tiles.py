"""Towers that see tiles of one size, each by itself: CLIP, SigLIP, InternViT and what is built like them.

A tile is cut into patches that do not overlap, so embedding them is a product. All tiles of a call are a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from edgetune_export.vision.attention import Heads, Operators
from edgetune_export.vision.writer import TowerWriter, VisionSource
from edgetune_runtime.errors import InputError


@dataclass(frozen=True)
class LayerNames:
    """What a tower's transformer layers call their parts; norms come before attention and feed-forward."""

    first_norm: str
    attention: str
    output: str
    second_norm: str
    scales: tuple[str, str] | None = None


CLIP_LAYER = LayerNames("layer_norm1", "self_attn", "out_proj", "layer_norm2")
"""Of CLIP and of SigLIP, which has the same names."""


class TileWriter(TowerWriter):
    """The graph of a tower of tiles while it is written.

    Args:
        source: the model.
        operators: to attend with.
        dtype: of weights and activations.
        names: of the parts of its layers.
    """

    def __init__(
        self, source: VisionSource, operators: Operators, dtype: ir.DataType, names: LayerNames = CLIP_LAYER
    ) -> None:
        super().__init__(source, operators, dtype)
        self.side, self.patch = tile_side(source), square(self.config.patch_size)
        self.across, self.hidden, self.names = self.side // self.patch, int(self.config.hidden_size), names
        self.pixels = self.graph.input("pixel_values", ir.DataType.FLOAT, ("tiles", 3, self.side, self.side))
        heads = int(self.config.num_attention_heads)
        self.heads = Heads(heads, self.hidden // heads, dtype)
        self.length = self.across**2

    def embed(self, projection: nn.Conv2d, name: str) -> ir.Value:
        """[T · patches, hidden]: patches of T tiles, row by row."""
        op, whole = self.graph.op, self.whole
        size, across, pixels = self.patch, self.across, self.pixels
        if across * size < self.side:  # a convolution leaves out what no whole patch covers
            ends = whole.number([across * size, across * size])
            pixels = op("Slice", pixels, whole.number([0, 0]), ends, whole.number([2, 3]))
        split = op("Reshape", pixels, whole.number([-1, 3, across, size, across, size]))
        rows = op("Transpose", split, perm=[0, 2, 4, 1, 3, 5])
        flat = op("Reshape", rows, whole.number([-1, 3 * size * size]))
        return self.product(f"tower.{name}", projection.weight, projection.bias, self.to(flat, self.dtype))

    def with_class_token(self, states: ir.Value, token: torch.Tensor, name: str) -> ir.Value:
        """[T · (1 + patches), hidden]: a learned vector before the patches of each tile."""
        op, one = self.graph.op, self.whole.number([1])
        by_tile = self.by_tile(states)
        vector = self.weight(f"tower.{name}", token, self.dtype, (self.hidden,))
        tiles = op("Shape", by_tile, start=0, end=1)
        shape = op("Concat", tiles, one, self.whole.number([self.hidden]), axis=0)
        self.length += 1
        return self.flat(op("Concat", op("Expand", vector, shape), by_tile, axis=1))

    def without_class_token(self, states: ir.Value) -> ir.Value:
        """The patches alone, [T · patches, hidden]."""
        op, whole = self.graph.op, self.whole
        rest = op("Slice", self.by_tile(states), whole.number([1]), whole.number([self.length]), whole.number([1]))
        self.length -= 1
        return self.flat(rest)

    def add_positions(self, states: ir.Value, table: torch.Tensor, name: str) -> ir.Value:
        """[T · length, hidden]: a vector for each place of a tile is added; the table is [length, hidden]."""
        positions = self.weight(f"tower.{name}", table, self.dtype, (self.length, self.hidden))
        return self.flat(self.graph.op("Add", self.by_tile(states), positions))

    def layers(self, blocks: nn.ModuleList, name: str, states: ir.Value, count: int | None = None) -> ir.Value:
        """The first `count` transformer layers, or all; states are [T · length, hidden]."""
        for number, block in enumerate(blocks[:count]):
            states = self.layer(f"tower.{name}.{number}", block, states)
        return states

    def layer(self, name: str, block: Any, states: ir.Value) -> ir.Value:
        """One transformer layer."""
        names, scales = self.names, self.names.scales or (None, None)
        for (norm, write), scale in zip(
            ((names.first_norm, self.attention), (names.second_norm, self.feed_forward)), scales, strict=True
        ):
            normed = self.norm(f"{name}.{norm}", getattr(block, norm), states)
            update = write(name, block, normed)
            if scale is not None:
                factor = self.weight(f"{name}.{scale}", getattr(block, scale), self.dtype)
                update = self.graph.op("Mul", update, factor)
            states = self.graph.op("Add", states, update)
        return states

    def attention(self, name: str, block: Any, states: ir.Value) -> ir.Value:
        """Project, attend within each tile and project back."""
        module, name = getattr(block, self.names.attention), f"{name}.{self.names.attention}"
        parts = []
        for part in "qkv":
            value = self.linear(f"{name}.{part}_proj", getattr(module, f"{part}_proj"), states)
            norm = getattr(module, f"{part}_norm", None)
            if norm is not None and not isinstance(norm, nn.Identity):
                value = self.norm(f"{name}.{part}_norm", norm, value)
            parts.append(self.by_tile(value))
        mixed = self.operators.mix(self.graph, (parts[0], parts[1], parts[2]), self.heads, None)
        output = self.names.output
        return self.linear(f"{name}.{output}", getattr(module, output), self.flat(mixed))

    def feed_forward(self, name: str, block: Any, states: ir.Value) -> ir.Value:
        """Two layers with an activation between them."""
        inner = self.activate(self.config.hidden_act, self.linear(f"{name}.mlp.fc1", block.mlp.fc1, states))
        return self.linear(f"{name}.mlp.fc2", block.mlp.fc2, inner)

    def shuffled(self, states: ir.Value, factor: int) -> ir.Value:
        """[T · patches / factor², hidden · factor²]: squares of `factor` patches side by side as one row.

        "Pixel shuffle" in transformers, which reshapes and transposes twice; the order of channels is that.
        """
        op, whole = self.graph.op, self.whole
        side, wide = self.across, self.hidden * factor
        rows = op("Reshape", states, whole.number([-1, side, side // factor, wide]))
        turned = op("Transpose", rows, perm=[0, 2, 1, 3])
        squares = op("Reshape", turned, whole.number([-1, side // factor, side // factor, wide * factor]))
        return op("Reshape", op("Transpose", squares, perm=[0, 2, 1, 3]), whole.number([-1, wide * factor]))

    def by_tile(self, states: ir.Value) -> ir.Value:
        """[T, length, hidden] of [T · length, hidden]."""
        return self.graph.op("Reshape", states, self.whole.number([-1, self.length, self.hidden]))

    def flat(self, states: ir.Value) -> ir.Value:
        """[T · length, hidden] of [T, length, hidden]."""
        return self.graph.op("Reshape", states, self.whole.number([-1, self.hidden]))


def tile_side(source: VisionSource) -> int:
    """Side of a tile, in pixels."""
    return square(source.tower.config.image_size)


def tile_sizes(source: VisionSource, most: int) -> Mapping[str, list[list[int]]]:
    """Shapes of one tile and of the most that a picture has."""
    side = tile_side(source)
    return {"pixel_values": [[count, 3, side, side] for count in (1, most, most)]}


def layers_before(layer: object, count: int) -> int:
    """How many of a tower's layers lead to its hidden state number `layer`, which may be counted from the end.

    Raises:
        InputError: it is no single number of one of them.
    """
    if type(layer) is not int or not -count - 1 <= layer <= count:
        raise InputError(
            f"vision_feature_layer {layer!r} cannot be exported", hint=f"one layer of {count} can, such as -2"
        )
    return layer if layer >= 0 else count + 1 + layer


def square(size: object) -> int:
    """The side of a square that a config gives as a number or as a pair.

    Raises:
        InputError: it is not square.
    """
    sides = {int(side) for side in size} if isinstance(size, list | tuple) else {int(str(size))}
    if len(sides) != 1:
        raise InputError(f"vision towers of tiles that are not square ({size!r}) are not exported")
    return sides.pop()
