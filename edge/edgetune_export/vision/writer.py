"""What all towers are written with: their parameters, norms, linear layers and activations as values of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgetune_core.streaming import Values, own_values
from edgetune_export.decoder.rounding import to_numpy
from edgetune_export.graph import GraphBuilder, cast_float
from edgetune_export.vision.attention import Operators
from edgetune_export.vision.layout import Whole
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules

OPSET = 20
"""Opset of the vision graph: TensorRT 10.3 and onnxruntime 1.17 read it."""

FEATURES = "image_features"
"""Output of every encoder: float32 [image tokens, H]."""


@dataclass(frozen=True)
class VisionSource:
    """What a tower is written from.

    Attributes:
        model: of transformers, on any device, in any float dtype.
        modules: names of its family.
        values: what a parameter of the model holds.
    """

    model: Any
    modules: Modules
    values: Values = own_values

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.get_submodule(self.modules.vision_root)


class TowerWriter:
    """One graph while it is written; weights are named as the parameters of tower, projector and so on are.

    Args:
        source: the model.
        operators: to attend with.
        dtype: of weights and activations, float32 or float16.
    """

    def __init__(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> None:
        self.source, self.operators, self.dtype = source, operators, dtype
        self.tower = source.tower
        self.config = self.tower.config
        self.graph = GraphBuilder("vision_encoder")
        self.whole = Whole(self.graph)

    def output(self, value: ir.Value, name: str, width: int) -> None:
        """Make a value [image tokens, width] an output of the graph, in float32."""
        self.graph.output(self.to(value, ir.DataType.FLOAT), name, ir.DataType.FLOAT, ("tokens", width))

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

    def weight(
        self, name: str, parameter: torch.Tensor, dtype: ir.DataType, shape: tuple[int, ...] | None = None
    ) -> ir.Value:
        """A parameter [N] or [N, ...], read when it is written; without a shape all axes but the first are one."""
        if shape is None:
            shape = (len(parameter), *((parameter[0].numel(),) if parameter.ndim > 1 else ()))
        return self.graph.weight(
            name, dtype, shape, lambda: cast_float(to_numpy(self.source.values(parameter)).reshape(shape), dtype)
        )

    def to(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in a dtype, where the activations' may be another."""
        return value if self.dtype == ir.DataType.FLOAT else self.graph.op("Cast", value, to=dtype)

    def real(self, name: str, value: float) -> ir.Value:
        """A float32 constant."""
        return self.graph.constant(f"{name}.{value}", np.array(value, np.float32))
