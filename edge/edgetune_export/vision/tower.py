"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL as graphs, written operator by operator, as the decoder is.

Everything that depends on the pictures' sizes (which frame or window a patch belongs to, its row and column, the taps
of the position table) is computed in the graph from `image_grid_thw`. Weights are read when they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgetune_core.streaming import Values, own_values
from edgetune_export.decoder.rounding import to_numpy
from edgetune_export.graph import Dim, GraphBuilder, cast_float
from edgetune_export.vision.attention import Attention, Heads, Rotary
from edgetune_export.vision.layout import Layout, Whole
from edgetune_runtime.errors import InputError

OPSET = 20
"""Opset of the vision graph: TensorRT 10.3 and onnxruntime 1.17 read it."""

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Model types whose towers can be written."""

AttentionFactory = Callable[[GraphBuilder, Layout, Heads], Attention]


def write_tower(
    model_type: str,
    tower: nn.Module,
    attention: AttentionFactory,
    *,
    dtype: ir.DataType = ir.DataType.FLOAT,
    pictures: Dim = "images",
    values: Values = own_values,
) -> ir.Model:
    """Write a tower of transformers as a graph.

    Inputs: pixel_values float32 [P, channels · frames · patch · patch], image_grid_thw int64 [N, 3]. Outputs:
    image_features float32 [P / merge², H], and deepstack_features_{i} of the same shape where the tower has them.

    Args:
        model_type: of the checkpoint.
        tower: on any device, in any float dtype.
        attention: the operators to attend with.
        dtype: of weights and activations, float32 or float16.
        pictures: N in the graph's interface, free or fixed.
        values: what a parameter of the tower holds.

    Raises:
        InputError: the model type or its activation is not supported.
    """
    if model_type not in FAMILIES:
        raise InputError(
            f"no exportable vision tower for model type {model_type!r}", hint=f"supported: {', '.join(FAMILIES)}"
        )
    return _Writer(tower, attention, dtype, pictures, values).write()


class _Writer:
    """One graph while it is written; its weights are named as the tower's parameters are."""

    def __init__(
        self, tower: Any, attention: AttentionFactory, dtype: ir.DataType, pictures: Dim, values: Values
    ) -> None:
        self.tower, self.values = tower, values
        self.config = tower.config
        self.dtype = dtype
        self.graph = GraphBuilder("vision_encoder")
        self.whole = Whole(self.graph)
        self.merge: int = self.config.spatial_merge_size
        projection = tower.patch_embed.proj
        hidden, size = len(projection.weight), projection.weight[0].numel()
        self.pixels = self.graph.input("pixel_values", ir.DataType.FLOAT, ("patches", size))
        grid = self.graph.input("image_grid_thw", ir.DataType.INT64, (pictures, 3))
        count = self.graph.op("Gather", self.graph.op("Shape", self.pixels), self.whole.number(0))
        self.layout = Layout(self.graph, count, grid, self.merge)
        self.heads = Heads(self.config.num_heads, hidden // self.config.num_heads, dtype)
        self.attend = attention(self.graph, self.layout, self.heads)

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
        outputs = {"image_features": self.merger("tower.merger", tower.merger, states)} | outputs
        last = [part for part in tower.merger.modules() if isinstance(part, nn.Linear)][-1]
        for name, value in outputs.items():
            shape = ("tokens", len(last.weight))
            self.graph.output(self.to(value, ir.DataType.FLOAT), name, ir.DataType.FLOAT, shape)
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

    def activate(self, kind: str, states: ir.Value) -> ir.Value:
        """An activation by its name in transformers.

        Raises:
            InputError: it is none that can be written.
        """
        if kind == "silu":
            return self.graph.op("Mul", states, self.graph.op("Sigmoid", states))
        if kind == "quick_gelu":  # arXiv 1606.08415, section 2
            steep = self.graph.op("Mul", states, self.to(self.real("quick_gelu", 1.702), self.dtype))
            return self.graph.op("Mul", states, self.graph.op("Sigmoid", steep))
        approximations = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}
        if kind not in approximations:
            supported = ", ".join((*approximations, "quick_gelu", "silu"))
            raise InputError(f"vision activation {kind!r} is not supported", hint=f"supported: {supported}")
        return self.graph.op("Gelu", states, approximate=approximations[kind])

    def merger(self, name: str, module: Any, states: ir.Value) -> ir.Value:
        """[P / merge², H]: the patches of a merge block side by side, through two layers."""
        block = self.whole.number([-1, self.heads.width * self.merge * self.merge])

        def side_by_side(value: ir.Value) -> ir.Value:
            return self.graph.op("Reshape", value, block)

        if hasattr(module, "ln_q"):
            norms, first, second = ("ln_q", module.ln_q), ("mlp.0", module.mlp[0]), ("mlp.2", module.mlp[2])
        else:
            norms, *layers = ((part, getattr(module, part)) for part in ("norm", "linear_fc1", "linear_fc2"))
            first, second = layers
        if getattr(module, "use_postshuffle_norm", False):
            states = self.norm(f"{name}.{norms[0]}", norms[1], side_by_side(states))
        else:
            states = side_by_side(self.norm(f"{name}.{norms[0]}", norms[1], states))
        inner = self.activate("gelu", self.linear(f"{name}.{first[0]}", first[1], states))
        return self.linear(f"{name}.{second[0]}", second[1], inner)

    def norm(self, name: str, module: Any, states: ir.Value) -> ir.Value:
        """A layer norm, or an RMS norm computed in float32."""
        op = self.graph.op
        weight = self.weight(f"{name}.weight", module.weight, self.dtype)
        if isinstance(module, nn.LayerNorm):
            bias = self.weight(f"{name}.bias", module.bias, self.dtype)
            return op("LayerNormalization", states, weight, bias, axis=-1, epsilon=module.eps)
        wide = self.to(states, ir.DataType.FLOAT)
        mean = op("ReduceMean", op("Pow", wide, self.real("square", 2.0)), self.whole.number([-1]), keepdims=1)
        root = op("Sqrt", op("Add", mean, self.real("epsilon", module.variance_epsilon)))
        return op("Mul", self.to(op("Div", wide, root), self.dtype), weight)

    def linear(self, name: str, module: nn.Linear, states: ir.Value) -> ir.Value:
        """A linear layer of states [rows, K]."""
        return self.product(name, module.weight, module.bias, states)

    def product(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None, states: ir.Value) -> ir.Value:
        """States [rows, K] @ weightᵀ + bias."""
        parameters = [self.weight(f"{name}.weight", weight, self.dtype)]
        if bias is not None:
            parameters.append(self.weight(f"{name}.bias", bias, self.dtype))
        return self.graph.op("Gemm", states, *parameters, transB=1)

    def weight(self, name: str, parameter: torch.Tensor, dtype: ir.DataType) -> ir.Value:
        """A parameter [N] or [N, ...], read when it is written; all but its first axis are one."""
        shape = (len(parameter), *((parameter[0].numel(),) if parameter.ndim > 1 else ()))
        return self.graph.weight(
            name, dtype, shape, lambda: cast_float(to_numpy(self.values(parameter)).reshape(shape), dtype)
        )

    def to(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in a dtype, where the activations' may be another."""
        return value if self.dtype == ir.DataType.FLOAT else self.graph.op("Cast", value, to=dtype)

    def real(self, name: str, value: float) -> ir.Value:
        """A float32 constant."""
        return self.graph.constant(f"{name}.{value}", np.array(value, np.float32))
