"""Int8 linear layers for the exported vision graph, each in the faster of two schemes that is accurate enough for it.

*Dynamic*: activations get one scale a call, weights one an output; integer products are about three times as fast as
float32 ones. *By block* (MatMulNBits): every 32 weights, and activations alike, share a scale; hardly faster than
float32 for this many rows, but immune to the few very large activations that vision transformers tend to have.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetune.export.dialects.ort import INT8_ACTIVATIONS, MICROSOFT
from edgetune.export.vision import ExportableVision
from edgetune_runtime.quant.blocks import BlockFormat, Float, round_to_nearest

WEIGHT_LIMIT = 63
"""Largest magnitude of a dynamic layer's weight codes: 7 bits, because the int8 instructions of x86 CPUs before VNNI
saturate the sum of two products of 8 bits, and a bundle must give the same boxes on every machine."""

MAX_DYNAMIC_ERROR = 0.04
"""Largest relative error of a dynamic layer's output. Well-behaved activations give 0.007 to 0.03; one value a hundred
times the others gives several tenths."""


@torch.no_grad()
def dynamic_layers(wrapper: ExportableVision, images: Iterable[tuple[Tensor, Tensor]]) -> frozenset[str]:
    """Names of the weights whose layers stay accurate in the dynamic scheme, on images as `wrapper` takes them.

    Only the transformer blocks are considered: mergers are a small share of the work, and all that the decoder sees.
    """
    errors: dict[str, float] = {}

    def observe(name: str) -> Any:
        def hook(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            exact = inputs[0] @ layer.weight.T
            scale = layer.weight.abs().amax(dim=1, keepdim=True) / WEIGHT_LIMIT
            weight = (layer.weight / scale).round() * scale
            error = (_dynamically_rounded(inputs[0]) @ weight.T - exact).norm() / exact.norm()
            errors[name] = max(errors.get(name, 0.0), float(error))

        return hook

    layers = [(name, layer) for name, layer in wrapper.named_modules() if isinstance(layer, nn.Linear)]
    hooks = [
        layer.register_forward_hook(observe(f"{name}.weight"))
        for name, layer in layers
        if name.startswith("tower.blocks.")
    ]
    for image in images:
        wrapper(*image)
    for handle in hooks:
        handle.remove()
    return frozenset(name for name, error in errors.items() if error <= MAX_DYNAMIC_ERROR)


def _dynamically_rounded(values: Tensor) -> Tensor:
    """What DynamicQuantizeLinear keeps of a tensor: uint8 with one scale and zero point."""
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round()
    return (((values / scale).round() + zero).clamp(0, 255) - zero) * scale


def quantize_linears(model: ir.Model, fmt: BlockFormat, dynamic: Set[str]) -> None:
    """Rewrite every linear layer but the patch embedding, in place: dynamic those named, by block the others.

    The patch embedding is the first one: under one percent of the work, and every later layer sees its error.
    """
    linears = [node for node in model.graph if node.op_type == "Gemm" and _weight(node) is not None]
    rounded: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for node in linears[1:]:
        if not node.attributes.get_int("transB", 0):
            raise ValueError(f"{node.name}: expected the weight of a linear layer as [N, K]")
        source = node.inputs[1]
        assert source is not None and source.name is not None
        weight = _weight(node)
        assert weight is not None
        if source.name in dynamic:
            nodes = _dynamic(model.graph, node, source.name, weight, rounded)
        else:
            nodes = [_by_block(model.graph, node, source.name, weight, fmt)]
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        if not source.uses():
            del model.graph.initializers[source.name]
    model.opset_imports[MICROSOFT] = 1


def _weight(node: ir.Node) -> Float | None:
    source = node.inputs[1]
    return None if source is None or source.const_value is None else source.const_value.numpy()


def _by_block(graph: ir.Graph, node: ir.Node, name: str, weight: Float, fmt: BlockFormat) -> ir.Node:
    blocks = round_to_nearest(weight, fmt)
    codes = _initializer(graph, f"{name}_codes", blocks.packed_codes())
    scales = _initializer(graph, f"{name}_scales", blocks.scales)
    attributes = {
        "K": blocks.columns,
        "N": len(blocks.codes),
        "bits": fmt.bits,
        "block_size": fmt.block,
        "accuracy_level": INT8_ACTIVATIONS,
    }
    states, _, *bias = node.inputs
    inputs = [states, codes, scales, *([None, None, *bias] if bias else [])]
    return ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)


def _dynamic(
    graph: ir.Graph, node: ir.Node, name: str, weight: Float, rounded: dict[ir.Value, tuple[ir.Value, ...]]
) -> list[ir.Node]:
    """The chain of operators that onnxruntime fuses into one; `rounded` shares inputs that several layers read."""
    states, _, *bias = node.inputs
    assert states is not None
    nodes = []
    if states not in rounded:
        nodes.append(ir.Node("", "DynamicQuantizeLinear", [states], num_outputs=3))
        rounded[states] = tuple(nodes[0].outputs)
    values, scale, zero = rounded[states]
    largest = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny)
    steps = (largest / np.float32(WEIGHT_LIMIT)).astype(np.float32)
    codes = np.ascontiguousarray(np.rint(weight / steps[:, None]).astype(np.int8).T)  # [K, N]
    constants = (
        _initializer(graph, f"{name}_codes", codes),
        _initializer(graph, f"{name}_zeros", np.zeros(len(weight), np.int8)),
        _initializer(graph, f"{name}_scales", steps),
    )
    product = ir.node("MatMulInteger", [values, constants[0], zero, constants[1]])
    floats = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT})
    factor = ir.node("Mul", [scale, constants[2]])
    scaled = ir.node("Mul", [floats.outputs[0], factor.outputs[0]])
    nodes += [product, floats, factor, scaled]
    if bias:
        nodes.append(ir.node("Add", [scaled.outputs[0], *bias]))
    return nodes


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value
