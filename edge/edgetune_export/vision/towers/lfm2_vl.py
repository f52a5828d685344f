"""LFM2-VL's tower: SigLIP2 over tiles of any size (NaFlex, arXiv 2502.14786), squares of patches, and a projector.

Tiles come as packed patches with their grids, as a Qwen tower's pictures do, and need no padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetune_export.vision.attention import Operators
from edgetune_export.vision.towers.patches import PatchWriter
from edgetune_export.vision.writer import FEATURES, OPSET, VisionSource
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.naflex import NaFlex


class Lfm2VlTower:
    """SigLIP2 and a projector.

    Inputs: pixel_values float32 [P, patch · patch · channels] of all tiles, those of a merge block behind one another,
    and image_grid_thw int64 [tiles, 3]; output: image_features float32 [P / merge², H].
    """

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph; see `Tower`."""
        return _Writer(source, operators, dtype).write()

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """Sizes of the free inputs; see `Tower`."""
        assert isinstance(spec, NaFlex)
        values, merge = 3 * spec.patch_size**2, spec.downsample_factor**2
        return {"pixel_values": [[count * merge, values] for count in (1, tokens, tokens)]}


class _Writer(PatchWriter):
    """The graph while it is written."""

    def __init__(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> None:
        tower, factor = source.tower, source.model.config.downsample_factor
        sizes = {"heads": tower.config.num_attention_heads, "merge": factor}
        super().__init__(source, operators, dtype, projection=tower.embeddings.patch_embedding, **sizes)

    def write(self) -> ir.Model:
        """The whole graph."""
        tower, config, op = self.tower, self.source.model.config, self.graph.op
        pixels = self.to(self.pixels, self.dtype)
        states = self.linear("tower.embeddings.patch_embedding", tower.embeddings.patch_embedding, pixels)
        states = op("Add", states, self.to(self.positions(), self.dtype))
        for number, block in enumerate(tower.encoder.layers):
            name = f"tower.encoder.layers.{number}"
            normed = self.norm(f"{name}.layer_norm1", block.layer_norm1, states)
            states = op("Add", states, self.attention(f"{name}.self_attn", block.self_attn, normed))
            normed = self.norm(f"{name}.layer_norm2", block.layer_norm2, states)
            inner = self.activate(self.config.hidden_act, self.linear(f"{name}.mlp.fc1", block.mlp.fc1, normed))
            states = op("Add", states, self.linear(f"{name}.mlp.fc2", block.mlp.fc2, inner))
        states = self.norm("tower.post_layernorm", tower.post_layernorm, states)
        projector = self.source.model.get_submodule(self.source.modules.mergers[0])
        states = self.side_by_side(states)
        if projector.layer_norm is not None:
            states = self.norm("projector.layer_norm", projector.layer_norm, states)
        states = self.linear("projector.linear_1", projector.linear_1, states)
        states = self.activate(config.projector_hidden_act, states)
        features = self.linear("projector.linear_2", projector.linear_2, states)
        self.output(features, FEATURES, config.text_config.hidden_size)
        return self.graph.model(OPSET)

    def attention(self, name: str, module: Any, states: ir.Value) -> ir.Value:
        """Project, attend within each tile and project back."""
        query, key, value = (
            self.linear(f"{name}.{part}_proj", getattr(module, f"{part}_proj"), states) for part in "qkv"
        )
        return self.linear(f"{name}.out_proj", module.out_proj, self.attend(query, key, value, None))

    def positions(self) -> ir.Value:
        """The learned table, resampled to each tile's grid as torch's antialiased bilinear filter does: [P, hidden].

        The filter is separable: the shares of a patch in the table's rows and in its columns, multiplied, are its
        shares in the whole table.
        """
        op, layout, embeddings = self.graph.op, self.layout, self.tower.embeddings
        side, hidden = int(embeddings.position_embedding_size), self.heads.width
        rows = op("Unsqueeze", self.shares(layout.row, layout.height, side), self.whole.number([2]))
        columns = op("Unsqueeze", self.shares(layout.column, layout.width, side), self.whole.number([1]))
        shares = op("Reshape", op("Mul", rows, columns), self.whole.number([-1, side * side]))
        table = embeddings.position_embedding.weight
        name, shape = "tower.embeddings.position_embedding.weight", (side * side, hidden)
        return op("MatMul", shares, self.weight(name, table, ir.DataType.FLOAT, shape))

    def shares(self, place: ir.Value, size: ir.Value, side: int) -> ir.Value:
        """Shares [P, side] of each place of an axis of length `size` in those of an axis of length `side`; sums are 1.

        A triangle around the place's centre, as wide as two steps of the coarser of both axes.
        """
        op, real, last = self.graph.op, ir.DataType.FLOAT, self.whole.number([1])
        one, half = self.real("one", 1.0), self.real("half", 0.5)
        scale = op("Unsqueeze", op("Div", self.real("side", side), op("Cast", size, to=real)), last)
        centre = op("Mul", op("Unsqueeze", op("Add", op("Cast", place, to=real), half), last), scale)
        ticks = self.graph.constant("tower.position.ticks", np.arange(side, dtype=np.float32) + np.float32(0.5))
        away = op("Div", op("Abs", op("Sub", ticks, centre)), op("Max", scale, one))
        heights = op("Relu", op("Sub", one, away))
        return op("Div", heights, op("ReduceSum", heights, self.whole.number([-1]), keepdims=1))
