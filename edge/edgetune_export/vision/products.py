"""The ways to write one linear layer of the vision encoder with int8 weights.

| | activations | weights |
|---|---|---|
| `by_block` | int8 by block, found at run time (`MatMulNBits`) | int8, a scale for 32 |
| `dynamic` | uint8, one scale a call | 7 bits, a scale an output |
| `static` | uint8, a scale known ahead | 7 bits, a scale an output |
| `static_standard` | the same in standard operators: QuantizeLinear and DequantizeLinear around Gemm | |
| `weights_only` | float32 | int8, a scale an output, in standard operators |

Each takes a layer and returns the nodes that replace it; the last one's output is the layer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.decoder.dialects.ort import INT8_ACTIVATIONS
from edgetune_export.graph import MICROSOFT
from edgetune_runtime.quant.blocks import BlockFormat, Float, round_to_nearest

WEIGHT_LIMIT = 63
"""Largest magnitude of weight codes beside uint8 activations: 7 bits, because the int8 instructions of x86 CPUs before
VNNI saturate the sum of two products of 8 bits, and a bundle must give the same boxes on every machine."""


@dataclass(frozen=True)
class Layer:
    """One linear layer: its Gemm, and its weight [N, K] by name."""

    graph: ir.Graph
    node: ir.Node
    name: str
    weight: Float

    @property
    def states(self) -> ir.Value:
        """What it reads, [P, K]."""
        states = self.node.inputs[0]
        assert states is not None
        return states

    @property
    def bias(self) -> ir.Value | None:
        """Its bias [N]."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    def constant(self, part: str, array: NDArray[Any]) -> ir.Value:
        """An initializer of its own; a part of that name is made once."""
        name = f"{self.name}_{part}"
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value


Product = Callable[[Layer], list[ir.Node]]


@dataclass(frozen=True)
class Range:
    """What 256 levels with a zero point span: float32 `scale`, and the code of zero."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """The levels from low (at most 0) to high (at least 0)."""
        scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
        return cls(scale, round(-low / scale))


def by_block(fmt: BlockFormat) -> Product:
    """MatMulNBits."""

    def write(layer: Layer) -> list[ir.Node]:
        blocks = round_to_nearest(layer.weight, fmt)
        codes = layer.constant("codes", blocks.packed_codes())
        scales = layer.constant("scales", blocks.scales)
        attributes = {
            "K": blocks.columns,
            "N": len(blocks.codes),
            "bits": fmt.bits,
            "block_size": fmt.block,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        bias = [] if layer.bias is None else [None, None, layer.bias]
        return [ir.node("MatMulNBits", [layer.states, codes, scales, *bias], attributes, domain=MICROSOFT)]

    return write


@dataclass
class Dynamic:
    """The chain of operators that onnxruntime fuses into one; inputs that several layers read are rounded once."""

    rounded: dict[ir.Value, tuple[ir.Value, ...]] = field(default_factory=dict)

    def __call__(self, layer: Layer) -> list[ir.Node]:
        """Write the layer."""
        nodes = []
        if layer.states not in self.rounded:
            nodes.append(ir.Node("", "DynamicQuantizeLinear", [layer.states], num_outputs=3))
            self.rounded[layer.states] = tuple(nodes[0].outputs)
        values, scale, zero = self.rounded[layer.states]
        codes, steps = _by_output(layer.weight, WEIGHT_LIMIT)
        zeros = layer.constant("zeros", np.zeros(len(steps), np.int8))
        product = ir.node("MatMulInteger", [values, layer.constant("codes", _columns_first(codes)), zero, zeros])
        floats = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT})
        factor = ir.node("Mul", [scale, layer.constant("scales", steps)])
        scaled = ir.node("Mul", [floats.outputs[0], factor.outputs[0]])
        nodes += [product, floats, factor, scaled]
        if layer.bias is not None:
            nodes.append(ir.node("Add", [scaled.outputs[0], layer.bias]))
        return nodes


def static(span: Range) -> Product:
    """QuantizeLinear and onnxruntime's MatMulIntegerToFloat: nothing is left to find at run time."""

    def write(layer: Layer) -> list[ir.Node]:
        codes, steps = _by_output(layer.weight, WEIGHT_LIMIT)
        scale, zero = _ends(layer, span)
        rounded = ir.node("QuantizeLinear", [layer.states, scale, zero])
        inputs = [
            rounded.outputs[0],
            layer.constant("codes", _columns_first(codes)),
            scale,
            layer.constant("scales", steps),
            zero,
            layer.constant("zeros", np.zeros(len(steps), np.int8)),
            *([] if layer.bias is None else [layer.bias]),
        ]
        return [rounded, ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)]

    return write


def static_standard(span: Range) -> Product:
    """The same in standard operators, in the form that engines fuse: the bias is int32 in the product's steps."""

    def write(layer: Layer) -> list[ir.Node]:
        codes, steps = _by_output(layer.weight, WEIGHT_LIMIT)
        scale, zero = _ends(layer, span)
        rounded = ir.node("QuantizeLinear", [layer.states, scale, zero])
        restored = ir.node("DequantizeLinear", [rounded.outputs[0], scale, zero])
        # Without zero points onnxruntime does not fuse the product and computes it in float32.
        stored = [
            layer.constant("codes", _columns_first(codes)),
            layer.constant("scales", steps),
            layer.constant("zeros", np.zeros(len(steps), np.int8)),
        ]
        weight = ir.node("DequantizeLinear", stored, {"axis": 1})
        nodes, inputs = [rounded, restored, weight], [restored.outputs[0], weight.outputs[0]]
        if layer.bias is not None:
            assert layer.bias.const_value is not None
            finest = steps * np.float32(span.scale)
            counted = np.rint(layer.bias.const_value.numpy() / finest).clip(-(2**31), 2**31 - 1).astype(np.int32)
            whole = [layer.constant("bias_codes", counted), layer.constant("bias_scales", finest)]
            nodes.append(ir.node("DequantizeLinear", whole, {"axis": 0}))
            inputs.append(nodes[-1].outputs[0])
        return [*nodes, ir.node("Gemm", inputs)]

    return write


def weights_only(layer: Layer) -> list[ir.Node]:
    """Weights of 8 bits and a scale an output, activations as they are: standard operators, and no faster."""
    codes, steps = _by_output(layer.weight, 127)
    weight = ir.node("DequantizeLinear", [layer.constant("codes", codes), layer.constant("scales", steps)], {"axis": 0})
    bias = [] if layer.bias is None else [layer.bias]
    return [weight, ir.node("Gemm", [layer.states, weight.outputs[0], *bias], {"transB": 1})]


def _ends(layer: Layer, span: Range) -> tuple[ir.Value, ir.Value]:
    scale = layer.constant("input_scale", np.array(span.scale, np.float32))
    return scale, layer.constant("input_zero", np.array(span.zero, np.uint8))


def _by_output(weight: Float, limit: int) -> tuple[NDArray[np.int8], Float]:
    """int8 codes [N, K] and float32 steps [N] of a weight."""
    largest = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny)
    steps = (largest / np.float32(limit)).astype(np.float32)
    return np.rint(weight / steps[:, None]).astype(np.int8), steps


def _columns_first(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """[K, N]."""
    return np.ascontiguousarray(codes.T)
