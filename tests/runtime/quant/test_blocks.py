"""Rounding against the definition in exact arithmetic, and packing against onnxruntime's own kernel."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgetune_export.graph import GraphBuilder
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, round_to_nearest

Float = npt.NDArray[np.float32]

weights = st.tuples(st.integers(1, 5), st.integers(1, 100)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-4, 4, width=16))
)
formats = st.builds(BlockFormat, st.sampled_from([4, 8]), st.sampled_from([16, 32, 64]), st.booleans())


def run_kernel(states: Float, weight: BlockWeight) -> Float:
    """States @ weightᵀ by onnxruntime's MatMulNBits with float32 activations."""
    graph = GraphBuilder("product")
    value = graph.input("states", ir.DataType.FLOAT, states.shape)
    inputs = [value, graph.constant("codes", weight.packed_codes()), graph.constant("scales", weight.scales)]
    zeros = weight.packed_zero_points()
    if zeros is not None:
        inputs.append(graph.constant("zeros", zeros))
    rows = len(weight.codes)
    product = graph.op(
        "MatMulNBits",
        *inputs,
        domain="com.microsoft",
        K=weight.columns,
        N=rows,
        bits=weight.bits,
        block_size=weight.block,
        accuracy_level=1,
    )
    graph.output(product, "product", ir.DataType.FLOAT, (len(states), rows))
    model = ir.to_proto(graph.model(20)).SerializeToString()
    result: Float = onnxruntime.InferenceSession(model).run(None, {"states": states})[0]
    return result


@settings(deadline=None, max_examples=60)
@given(weight=weights, fmt=formats)
def test_every_weight_is_within_half_a_step(weight: Float, fmt: BlockFormat) -> None:
    rounded = round_to_nearest(weight, fmt)
    step = np.abs(np.repeat(rounded.scales, fmt.block, axis=1)[:, : weight.shape[1]])
    # A symmetric block has one code less on the side opposite to its extreme: there the error may reach a whole step.
    share = 1.0 if fmt.symmetric else 0.5
    # The zero point is rounded too, which can shift the ends of the range by another half.
    slack = 0.0 if fmt.symmetric else 0.5
    assert (np.abs(rounded.dequantize() - weight) <= step * (share + slack) + 1e-6).all()


@settings(deadline=None, max_examples=40)
@given(weight=weights, fmt=formats)
def test_zero_stays_zero(weight: Float, fmt: BlockFormat) -> None:
    assert (round_to_nearest(weight, fmt).dequantize()[weight == 0] == 0).all()


@settings(deadline=None, max_examples=40)
@given(weight=weights, fmt=formats)
def test_onnxruntime_reads_the_packing(weight: Float, fmt: BlockFormat) -> None:
    rounded = round_to_nearest(weight, fmt)
    identity = np.eye(weight.shape[1], dtype=np.float32)
    np.testing.assert_allclose(run_kernel(identity, rounded), rounded.dequantize().T, rtol=1e-6, atol=1e-6)


def test_symmetric_codes_by_hand() -> None:
    weight = np.array([[-8, -1, 0, 7, 3.4, 3.6] + [0] * 10], np.float32)
    rounded = round_to_nearest(weight, BlockFormat(4, 16, symmetric=True))
    assert rounded.scales.tolist() == [[1.0]]
    assert rounded.codes[0, 0, :6].tolist() == [0, 7, 8, 15, 11, 12]
    assert rounded.packed_codes()[0, 0, :3].tolist() == [0x70, 0xF8, 0xCB]


def test_asymmetric_codes_follow_the_definition_in_exact_arithmetic() -> None:
    generator = np.random.default_rng(3)
    weight = generator.normal(0.2, 1, (3, 32)).astype(np.float32)
    rounded = round_to_nearest(weight, BlockFormat(4, 32, symmetric=False))
    assert rounded.zero_points is not None
    for row, codes, scale, zero in zip(
        weight, rounded.codes[:, 0], rounded.scales[:, 0], rounded.zero_points[:, 0], strict=True
    ):
        exact = [Fraction(float(value)) for value in row]
        low, high = min(*exact, Fraction(0)), max(*exact, Fraction(0))
        step = (high - low) / 15
        assert float(step) == pytest.approx(float(scale), rel=1e-6)
        assert round(-low / step) == zero
        assert [round(value / step) + int(zero) for value in exact] == codes.tolist()


def test_asymmetric_is_closer_on_skewed_weights() -> None:
    weight = np.random.default_rng(0).normal(0.5, 1, (64, 256)).astype(np.float32)
    errors = [
        np.square(round_to_nearest(weight, BlockFormat(4, 32, symmetric)).dequantize() - weight).mean()
        for symmetric in (False, True)
    ]
    assert errors[0] < errors[1]
