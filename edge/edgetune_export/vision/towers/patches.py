"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL as graphs, written operator by operator, as the decoder is.

Everything that depends on the pictures' sizes (which frame or window a patch belongs to, its row and column, the taps
of the position table) is computed in the graph from `image_grid_thw`. Weights are read when they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from torch import nn

from edgetune_export.vision.attention import Heads, Operators, Rotary
from edgetune_export.vision.layout import Layout
from edgetune_export.vision.writer import FEATURES, OPSET, TowerWriter, VisionSource
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.smart import ImageSpec


class PatchTower:
    """Towers whose batch is one sequence of the pictures' patches.

    Inputs: pixel_values float32 [P, channels · frames · patch · patch], image_grid_thw int64 [N, 3]. Outputs:
    image_features float32 [P / merge², H], and deepstack_features_{i} of the same shape where the tower has them.
    """

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph; see `Tower`."""
        return _Writer(source, operators, dtype).write()

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """Sizes of the free inputs; see `Tower`."""
        assert isinstance(spec, ImageSpec)
        return {"pixel_values": [[count * spec.merge_size**2, spec.patch_values] for count in (1, tokens, tokens)]}


class PatchWriter(TowerWriter):
    """The graph of a tower of patches while it is written.

    Args:
        source: the model.
        operators: to attend with.
        dtype: of weights and activations.
        projection: the layer that embeds a patch.
        heads: of attention.
        merge: patches along each side of one image token.
    """

    def __init__(
        self,
        source: VisionSource,
        operators: Operators,
        dtype: ir.DataType,
        *,
        projection: nn.Module,
        heads: int,
        merge: int,
    ) -> None:
        super().__init__(source, operators, dtype)
        self.merge, embedding = merge, projection.get_parameter("weight")
        hidden, size = len(embedding), embedding[0].numel()
        self.pixels = self.graph.input("pixel_values", ir.DataType.FLOAT, ("patches", size))
        grid = self.graph.input("image_grid_thw", ir.DataType.INT64, (operators.pictures, 3))
        count = self.graph.op("Gather", self.graph.op("Shape", self.pixels), self.whole.number(0))
        self.layout = Layout(self.graph, count, grid, merge)
        self.heads = Heads(heads, hidden // heads, dtype)
        self.attend = operators.packed(self.graph, self.layout, self.heads)

    def side_by_side(self, states: ir.Value) -> ir.Value:
        """[P / merge², merge² · hidden]: the patches of a merge block as one row."""
        return self.graph.op("Reshape", states, self.whole.number([-1, self.heads.width * self.merge * self.merge]))


class _Writer(PatchWriter):
    """The graph of a Qwen tower."""

    def __init__(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> None:
        tower = source.tower
        sizes = {"heads": tower.config.num_heads, "merge": tower.config.spatial_merge_size}
        super().__init__(source, operators, dtype, projection=tower.patch_embed.proj, **sizes)

    def write(self) -> ir.Model:
        """The whole graph."""
        tower, op = self.tower, self.graph.op
        projection = tower.patch_embed.proj
        # Kernel and stride both equal the patch, so the convolution is a matrix product over the flat patch.
        states = self.product("patch", projection.weight, projection.bias, self.to(self.pixels, self.dtype))
        if hasattr(tower, "pos_embed"):
            states = op("Add", states, self.to(self.positions(), self.dtype))
        rotary = self.rotary()
        extra = list(getattr(tower, "deepstack_visual_indexes", ()))
        outputs: dict[str, ir.Value] = {}
        for number, block in enumerate(tower.blocks):
            name = f"tower.blocks.{number}"
            normed = self.norm(f"{name}.norm1", block.norm1, states)
            states = op("Add", states, self.attention(f"{name}.attn", block.attn, normed, rotary, self.window(number)))
            normed = self.norm(f"{name}.norm2", block.norm2, states)
            states = op("Add", states, self.feed_forward(f"{name}.mlp", block.mlp, normed))
            if number in extra:
                index = extra.index(number)
                merger = tower.deepstack_merger_list[index]
                outputs[f"deepstack_features_{index}"] = self.merger(
                    f"tower.deepstack_merger_list.{index}", merger, states
                )
        outputs = {FEATURES: self.merger("tower.merger", tower.merger, states)} | outputs
        last = [part for part in tower.merger.modules() if isinstance(part, nn.Linear)][-1]
        for name, value in outputs.items():
            self.output(value, name, len(last.weight))
        return self.graph.model(OPSET)

    def positions(self) -> ir.Value:
        """The learned table, bilinearly resampled to each picture's grid with aligned corners: float32 [P, hidden]."""
        op, side = self.graph.op, int(self.tower.num_grid_per_side)
        table = self.weight("tower.pos_embed.weight", self.tower.pos_embed.weight, ir.DataType.FLOAT)
        rows, columns = (
            self.taps(place, size, side)
            for place, size in ((self.layout.row, self.layout.height), (self.layout.column, self.layout.width))
        )
        total: ir.Value | None = None
        for row, row_share in rows:
            for column, column_share in columns:
                index = op("Add", op("Mul", row, self.whole.number(side)), column)
                share = op("Unsqueeze", op("Mul", row_share, column_share), self.whole.number([1]))
                part = op("Mul", op("Gather", table, index), share)
                total = part if total is None else op("Add", total, part)
        assert total is not None
        return total

    def taps(self, place: ir.Value, size: ir.Value, side: int) -> list[tuple[ir.Value, ir.Value]]:
        """Both neighbours int64 [P] in a table axis of length `side`, and their shares float32 [P]."""
        op, real = self.graph.op, ir.DataType.FLOAT
        steps = op("Cast", op("Max", op("Sub", size, self.whole.number(1)), self.whole.number(1)), to=real)
        source = op("Div", op("Mul", op("Cast", place, to=real), self.real("side", side - 1)), steps)
        low = op("Floor", source)
        behind = op("Sub", source, low)
        last = self.whole.number(side - 1)
        first = op("Cast", low, to=ir.DataType.INT64)
        # Rounding may push the last place past the table's end, where its share is zero but its index must exist.
        indices = [op("Min", index, last) for index in (first, op("Add", first, self.whole.number(1)))]
        return [(indices[0], op("Sub", self.real("one", 1.0), behind)), (indices[1], behind)]

    def rotary(self) -> Rotary:
        """The tables of the axial rotary embedding."""
        op, axes = self.graph.op, self.whole.number([1])
        frequencies = self.tower.rotary_pos_emb.inv_freq.float().cpu().numpy()  # [d / 4]
        table = self.graph.constant("tower.rotary_pos_emb.inv_freq", frequencies)
        rows, columns = (
            op("Mul", op("Unsqueeze", op("Cast", place, to=ir.DataType.FLOAT), axes), table)
            for place in (self.layout.row, self.layout.column)
        )
        angles = op("Concat", rows, columns, axis=-1)
        return Rotary(op("Cos", angles), op("Sin", angles))

    def window(self, layer: int) -> int | None:
        """Side in patches of the windows that a layer attends within, None where it attends to the frame."""
        whole_frames = getattr(self.config, "fullatt_block_indexes", None)
        if whole_frames is None or layer in whole_frames:
            return None
        return int(self.config.window_size // self.config.patch_size // self.merge * self.merge)

    def attention(self, name: str, module: Any, states: ir.Value, rotary: Rotary, window: int | None) -> ir.Value:
        """Project, rotate, attend and project back."""
        joint = self.linear(f"{name}.qkv", module.qkv, states)
        query, key, value = self.graph.ops("Split", joint, outputs=3, axis=-1, num_outputs=3)  # each [P, heads · d]
        query, key = (self.attend.rotate(part, rotary) for part in (query, key))
        return self.linear(f"{name}.proj", module.proj, self.attend(query, key, value, window))

    def feed_forward(self, name: str, module: Any, states: ir.Value) -> ir.Value:
        """Two layers with an activation between them, or a gated pair and a third."""
        act = self.config.hidden_act
        if hasattr(module, "gate_proj"):
            gate = self.activate(act, self.linear(f"{name}.gate_proj", module.gate_proj, states))
            up = self.linear(f"{name}.up_proj", module.up_proj, states)
            return self.linear(f"{name}.down_proj", module.down_proj, self.graph.op("Mul", gate, up))
        first, second = ("fc1", "fc2") if hasattr(module, "fc1") else ("linear_fc1", "linear_fc2")
        inner = self.activate(act, self.linear(f"{name}.{first}", getattr(module, first), states))
        return self.linear(f"{name}.{second}", getattr(module, second), inner)

    def merger(self, name: str, module: Any, states: ir.Value) -> ir.Value:
        """[P / merge², H]: the patches of a merge block side by side, through two layers."""
        if hasattr(module, "ln_q"):
            norms, first, second = ("ln_q", module.ln_q), ("mlp.0", module.mlp[0]), ("mlp.2", module.mlp[2])
        else:
            norms, *layers = ((part, getattr(module, part)) for part in ("norm", "linear_fc1", "linear_fc2"))
            first, second = layers
        if getattr(module, "use_postshuffle_norm", False):
            states = self.norm(f"{name}.{norms[0]}", norms[1], self.side_by_side(states))
        else:
            states = self.side_by_side(self.norm(f"{name}.{norms[0]}", norms[1], states))
        inner = self.activate("gelu", self.linear(f"{name}.{first[0]}", first[1], states))
        return self.linear(f"{name}.{second[0]}", second[1], inner)
