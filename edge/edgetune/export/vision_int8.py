"""Int8 weights for the exported vision graph: its linear layers become MatMulNBits with 8 bits.

Weights are rounded by block, and CPU kernels round activations by block too. The common dynamic int8 scheme has one
activation scale a layer, which the few very large activations of vision transformers spoil; see docs/export.md for
both measured.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgetune.export.dialects.ort import INT8_ACTIVATIONS, MICROSOFT
from edgetune.export.quant import BlockFormat, round_to_nearest


def quantize_linears(model: ir.Model, fmt: BlockFormat) -> int:
    """Replace every Gemm with a constant weight but the patch embedding's, in place; returns how many.

    The patch embedding is the first one: it reads pixels, is under one percent of the work, and every later layer sees
        its error.
    """
    gemms = [node for node in model.graph if node.op_type == "Gemm" and node.inputs[1] is not None]
    weights = [node for node in gemms if node.inputs[1].const_value is not None]  # type: ignore[union-attr]
    for node in weights[1:]:
        _replace(model.graph, node, fmt)
    model.opset_imports[MICROSOFT] = 1
    return len(weights) - 1


def _replace(graph: ir.Graph, node: ir.Node, fmt: BlockFormat) -> None:
    states, source, *bias = node.inputs
    assert source is not None and source.const_value is not None and source.name is not None
    if not node.attributes.get_int("transB", 0):
        raise ValueError(f"{node.name}: expected the weight of a linear layer as [N, K]")
    blocks = round_to_nearest(source.const_value.numpy(), fmt)
    codes = _initializer(graph, f"{source.name}_codes", blocks.packed_codes())
    scales = _initializer(graph, f"{source.name}_scales", blocks.scales)
    attributes = {
        "K": blocks.columns,
        "N": len(blocks.codes),
        "bits": fmt.bits,
        "block_size": fmt.block,
        "accuracy_level": INT8_ACTIVATIONS,
    }
    inputs = [states, codes, scales, *([None, None, *bias] if bias else [])]
    fresh = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fresh], node.outputs, fresh.outputs)
    if not source.uses():
        del graph.initializers[source.name]


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value
