"""The vision encoder for pixels as they are: rescaling, normalisation and repeated frames are in its first product.

A value x of a picture becomes (x · rescale - mean) / std, and a tower for films sees that in each of its frames. Both
are linear, as the product that embeds a patch is: W · (x · a - c) summed over frames is (ΣW · a) · x - ΣW · c. So the
encoder takes uint8, an eighth of the bytes where there are two frames, and nobody makes floats of pixels.

The graph is made of the finished one, in place, and shares all of its other weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgetune_runtime.images.base import Preprocessing

Wide = npt.NDArray[np.float64]

MIDDLE = 128
"""What is taken from each value first, for it is near the mean of every rule: sums of both signs lose less than those
of 0 to 255, and engines that compute in bfloat16, as OpenVINO does, keep -128 to 127 as they are."""

_MOVES = frozenset({"Slice", "Reshape", "Transpose"})
"""Operators between the input and the product that take any dtype, and leave values alone."""


def fold(weight: Wide, bias: Wide, spec: Preprocessing) -> tuple[Wide, Wide]:
    """The product that embeds raw patches as another one embeds normalised ones.

    Args:
        weight: [N, K] over normalised values: by pixel and channel where the rule says `by_pixel`, else by channel,
            frame and pixel.
        bias: [N].
        spec: the rule.

    Returns:
        Weight [N, K / frames] over raw values less `MIDDLE`, and bias: flat patches are by pixel and channel,
        those that are cut from tiles by channel and pixel.
    """
    if spec.by_pixel:
        by_pixel = weight.reshape(len(weight), -1, 3)
    else:
        by_pixel = weight.reshape(len(weight), 3, spec.frames, -1).sum(axis=2).transpose(0, 2, 1)
    scaling = spec.scaling
    mean, std = np.array(scaling.mean), np.array(scaling.std)
    folded = by_pixel * (scaling.rescale / std)
    bias = bias + (by_pixel * ((MIDDLE * scaling.rescale - mean) / std)).sum(axis=(1, 2))
    if spec.patch_values is None:
        folded = folded.transpose(0, 2, 1)
    return folded.reshape(len(weight), -1), bias


def take_pixels(model: ir.Model, spec: Preprocessing) -> bool:
    """Rewrite a vision encoder, in place, for `Preprocessing.arrays` that are raw.

    The first product is written in float32 whatever the graph computes in: its weights, for values up to 255, would
    lose digits in float16.

    Returns:
        Whether it could be: the pixels go straight into a linear layer. If not, the model is as it was.
    """
    graph = model.graph
    pixels = next(value for value in graph.inputs if value.name == "pixel_values")
    product = next((node for node in graph if node.op_type == "Gemm"), None)
    if product is None or not product.attributes.get_int("transB", 0):
        return False
    old, states = [product], product.inputs[0]
    if (cast := _maker(states)) is not None and cast.op_type == "Cast":
        old, states = [cast, product], cast.inputs[0]
    if states is None or not _only_moved(states, pixels):
        return False
    weight, *biases = (value for value in product.inputs[1:] if value is not None)
    if any(value.const_value is None for value in (weight, *biases)):
        return False
    columns = _array(weight)
    bias = _array(biases[0]) if biases else np.zeros(len(columns))
    folded = [
        _initializer(graph, f"{weight.name}_{part}", array.astype(np.float32))
        for part, array in zip(("pixels", "offset"), fold(columns, bias, spec), strict=True)
    ]
    middle = _initializer(graph, "pixels_middle", np.array(MIDDLE, np.float32))
    new = [ir.node("Cast", [states], {"to": ir.DataType.FLOAT})]
    new.append(ir.node("Sub", [*new[0].outputs, middle]))
    new.append(ir.node("Gemm", [*new[1].outputs, *folded], {"transB": 1}))
    if weight.dtype != ir.DataType.FLOAT:
        new.append(ir.node("Cast", new[-1].outputs, {"to": weight.dtype}))
    ir.convenience.replace_nodes_and_values(graph, product, old, new, product.outputs, new[-1].outputs)
    for value in (weight, *biases):
        if value.name is not None and not value.uses():
            graph.initializers.pop(value.name, None)
    assert pixels.shape is not None
    pixels.type = ir.TensorType(ir.DataType.UINT8)
    if spec.patch_values is not None:
        pixels.shape = ir.Shape([pixels.shape[0], spec.patch_values // spec.frames])
    return True


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _only_moved(value: ir.Value, source: ir.Value) -> bool:
    """Whether a value holds those of another one, in another shape or order."""
    while value is not source:
        node = value.producer()
        if node is None or node.op_type not in _MOVES or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return True


def _array(value: ir.Value) -> Wide:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value
