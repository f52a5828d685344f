"""The vision encoder for TensorRT: one frame a call, in float16 or with int8 products.

TensorRT's int8 is explicit: a QuantizeLinear and DequantizeLinear pair before each product, with one scale for the
activations, found by calibration, and one an output for the weights. Both are symmetric.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.graph import cast_float
from edgetune_export.job import ExportJob
from edgetune_export.vision.attention import ONE_FRAME
from edgetune_export.vision.int8 import static_layers
from edgetune_export.vision.products import Range
from edgetune_export.vision.towers import tower_of
from edgetune_runtime.errors import InputError

LIMIT = 127
"""Largest magnitude of a code."""

HALF = ir.DataType.FLOAT16


def build_trt_vision(job: ExportJob) -> ir.Model:
    """Write the checkpoint's vision tower in float16, and round its layers where int8 was asked for.

    Layers that int8 would spoil (few very large activations) stay in float16, and so do the mergers.

    Raises:
        InputError: int8 without a weight set that knows the ranges of the tower's activations.
    """
    limits: dict[str, float] = {}
    if job.options.vision == "int8-static":
        missing = "int8 vision for TensorRT needs the ranges of its activations"
        spans = job.vision_ranges(missing, otherwise="fp16")
        limits = {name: float(span["amax"]) for name, span in spans.items()}
    model = tower_of(job.checkpoint.family.tower).write(job.checkpoint.vision, ONE_FRAME, HALF)
    if limits:
        ranges = {name: Range.of(-most, most) for name, most in limits.items()}
        # transformers runs, and calibration measured, layers whose output some models do not use.
        accurate = static_layers(job.seen, ranges) & _layers(model).keys()
        quantize_static(model, {name: most for name, most in limits.items() if name in accurate})
    return model


def _layers(model: ir.Model) -> dict[str, ir.Node]:
    """The linear layers of a graph, by the names of their weights."""
    products = [node for node in model.graph if node.op_type == "Gemm"]
    return {str(node.inputs[1].name): node for node in products if node.inputs[1] is not None}


def quantize_static(model: ir.Model, limits: Mapping[str, float]) -> None:
    """Make the products of a float16 tower int8, in place.

    Args:
        model: of a `Tower`.
        limits: largest magnitude of a layer's input, by the name of its weight; layers without one stay as they are.

    Raises:
        InputError: a name is not that of a layer.
    """
    layers = _layers(model)
    for name, limit in limits.items():
        if name not in layers:
            raise InputError(f"the vision encoder has no layer {name!r}, which the calibration has ranges of")
        node = layers[name]
        states, source = node.inputs[0], node.inputs[1]
        assert states is not None and source is not None and source.const_value is not None
        weight = source.const_value.numpy().astype(np.float32)  # [N, K]: the Gemm transposes it
        steps = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float16).tiny) / np.float32(LIMIT)
        steps = steps.astype(np.float16)
        codes = np.rint(weight / steps[:, None].astype(np.float32)).clip(-LIMIT, LIMIT).astype(np.int8)
        weights = [
            _initializer(model.graph, f"{name}_codes", codes),
            _initializer(model.graph, f"{name}_scales", steps),
        ]
        step = cast_float(np.array(max(limit, 1e-4) / LIMIT, np.float32), HALF)
        scale = _initializer(model.graph, f"{name}_input_scale", step)
        zero = _initializer(model.graph, f"{name}_input_zero", np.zeros((), np.int8))
        rounded = ir.node("QuantizeLinear", [states, scale, zero])
        restored = ir.node("DequantizeLinear", [rounded.outputs[0], scale, zero])
        unpacked = ir.node("DequantizeLinear", weights, {"axis": 0})
        model.graph.insert_before(node, [rounded, restored, unpacked])
        node.replace_input_with(0, restored.outputs[0])
        node.replace_input_with(1, unpacked.outputs[0])
        if not source.uses():
            del model.graph.initializers[name]


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value
