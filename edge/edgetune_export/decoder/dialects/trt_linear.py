"""Linear layers for TensorRT: INT4 DequantizeLinear, whose zero point must be zero, and an exact correction.

TensorRT reads 4-bit weights as `DequantizeLinear(int4, scale)` by block along K, without zero points and with positive
scales only. A weight `w = (q - z) · s` of a block is split as `w = (q - 8) · s + (8 - z) · s`; the second part is the
same for all inputs of the block, so that

    y = x · DQ(q - 8) + mean(x by block) · C,   C = block length · s · (8 - z)

holds exactly, with C one number a block and output. The mean instead of the sum keeps float16 in its range.

8-bit weights by block are not in TensorRT's documented grammar (its INT8 has one scale a tensor or an output). They are
written as two int4 weights: `q = 16 · high + low`, so `q - z = 16 · (high - 8) + (low - 8) + (136 - z)`. That is exact,
takes the same 8 bits, and every version reads it.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.decoder.linear import Linear, shared
from edgetune_export.graph import GraphBuilder, cast_float
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockWeight, Float

Signed = NDArray[np.int8]

_SMALLEST_HALF = np.float32(2.0**-24)
"""Float16's smallest positive number: what a scale that would round to zero becomes, as TensorRT refuses zeros."""


def dense_linear(graph: GraphBuilder, dtype: ir.DataType, states: ir.Value, linear: Linear) -> ir.Value:
    """States [1, S, K] times an unquantized weight."""
    shape = (linear.columns, linear.rows)
    read: Callable[[], Float] = lambda: cast_float(linear.dense().T, dtype)  # noqa: E731
    return graph.op("MatMul", states, graph.weight(f"{linear.name}.weight", dtype, shape, read))


def block_linear(graph: GraphBuilder, dtype: ir.DataType, states: ir.Value, linear: Linear) -> ir.Value:
    """States [1, S, K] times a weight quantized by block; [1, S, N].

    Raises:
        InputError: K is not a whole number of blocks.
    """
    fmt = linear.format
    assert fmt is not None
    if linear.columns % fmt.block:
        raise InputError(
            f"{linear.name}: {linear.columns} inputs are no whole number of blocks of {fmt.block}, as TensorRT needs",
            hint="choose a smaller block size",
        )

    # What decides on the correction is not kept: the graph is not being written yet, and all layers would be in memory.
    corrected = fmt.bits == 8 or not fmt.symmetric or bool((linear.blocks().scales <= 0).any())
    parts = 2 if fmt.bits == 8 else 1
    blocks = shared(linear, uses=2 * parts + corrected)

    def dequantized(part: str, scale: float, split: Callable[[BlockWeight], Signed]) -> ir.Value:
        shape, groups = (linear.columns, linear.rows), (linear.columns // fmt.block, linear.rows)
        name = f"{linear.name}.weight_{part}"
        codes = graph.weight(name, ir.DataType.INT4, shape, lambda: _columns_first(split(positive(blocks()))))
        scales = graph.weight(f"{name}_scales", dtype, groups, lambda: _scales(blocks(), scale, dtype))
        weight = graph.op("DequantizeLinear", codes, scales, axis=0, block_size=fmt.block)
        return graph.op("MatMul", states, weight)

    if fmt.bits == 8:
        product = graph.op("Add", dequantized("high", 16, _high), dequantized("low", 1, _low))
        offset = 136
    else:
        offset = 1 << (fmt.bits - 1)
        product = dequantized("codes", 1, lambda weight: (weight.codes.astype(np.int8) - offset).astype(np.int8))
    if not corrected:
        return product
    means = _block_means(graph, dtype, states, linear.columns // fmt.block, fmt.block)
    shape = (linear.columns // fmt.block, linear.rows)
    correction = graph.weight(
        f"{linear.name}.weight_correction", dtype, shape, lambda: _correction(blocks(), offset, dtype)
    )
    return graph.op("Add", product, graph.op("MatMul", means, correction))


def positive(blocks: BlockWeight) -> BlockWeight:
    """The same weight with scales above zero: `(q - z) · s = (top - q - (top - z)) · -s`."""
    top, negative = np.uint8((1 << blocks.bits) - 1), blocks.scales < 0
    zeros = blocks.zero_points
    if zeros is None:
        zeros = np.full(blocks.scales.shape, 1 << (blocks.bits - 1), np.uint8)
    return BlockWeight(
        codes=np.where(negative[:, :, None], top - blocks.codes, blocks.codes),
        scales=np.abs(blocks.scales),
        zero_points=np.where(negative, top - zeros, zeros),
        bits=blocks.bits,
        columns=blocks.columns,
    )


def _high(blocks: BlockWeight) -> Signed:
    return ((blocks.codes >> 4).astype(np.int8) - 8).astype(np.int8)


def _low(blocks: BlockWeight) -> Signed:
    return ((blocks.codes & 15).astype(np.int8) - 8).astype(np.int8)


def _columns_first(codes: Signed) -> NDArray[np.generic]:
    """int4 [K, N] of signed codes [N, blocks, block]."""
    return np.ascontiguousarray(codes.reshape(len(codes), -1).T).astype(ml_dtypes.int4)


def _scales(blocks: BlockWeight, factor: float, dtype: ir.DataType) -> NDArray[np.generic]:
    scales = np.abs(blocks.scales) * np.float32(factor)
    return cast_float(np.maximum(scales, _SMALLEST_HALF).T, dtype)


def _correction(blocks: BlockWeight, offset: int, dtype: ir.DataType) -> NDArray[np.generic]:
    """C [blocks, N]."""
    blocks = positive(blocks)
    assert blocks.zero_points is not None
    shift = np.float32(offset) - blocks.zero_points.astype(np.float32)
    return cast_float((np.float32(blocks.block) * blocks.scales * shift).T, dtype)


def _block_means(graph: GraphBuilder, dtype: ir.DataType, states: ir.Value, blocks: int, block: int) -> ir.Value:
    """Means [1, S, blocks] of states [1, S, K] over each block, summed in float32."""
    wide = states if dtype == ir.DataType.FLOAT else graph.op("Cast", states, to=ir.DataType.FLOAT)
    shape = graph.constant(f"shape.blocks.{blocks}.{block}", np.array([1, -1, blocks, block]))
    means = graph.op(
        "ReduceMean", graph.op("Reshape", wide, shape), graph.constant("axis.last", np.array([-1])), keepdims=0
    )
    return means if dtype == ir.DataType.FLOAT else graph.op("Cast", means, to=dtype)
