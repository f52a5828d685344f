"""Checkpoint layouts against readers written here, value by value, from the formats' definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant import awq, compressed, gptq
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight
from edgetune_runtime.quant.layouts import LAYOUTS

Array = npt.NDArray[Any]
ROWS, COLUMNS = 32, 128


def weight_of(fmt: BlockFormat, rows: int = ROWS, columns: int = COLUMNS) -> BlockWeight:
    """Random codes, float16 scales and zero points of at least 1."""
    rng = np.random.default_rng(fmt.bits)
    groups, top = columns // fmt.block, (1 << fmt.bits) - 1
    return BlockWeight(
        codes=rng.integers(0, top + 1, (rows, groups, fmt.block), dtype=np.uint8),
        scales=rng.uniform(0.01, 1, (rows, groups)).astype(np.float16).astype(np.float32),
        zero_points=None if fmt.symmetric else rng.integers(1, top + 1, (rows, groups), dtype=np.uint8),
        bits=fmt.bits,
        columns=columns,
    )


FORMATS = [
    BlockFormat(bits, block, symmetric) for bits in (3, 4, 8) for block in (32, 64) for symmetric in (False, True)
]


def read_bits(words: Array, index: int, bits: int) -> int:
    """Number `index` of a run of numbers of so many bits, in 32-bit words from the lowest bit up."""
    number = 0
    for bit in range(bits):
        place = index * bits + bit
        number |= ((int(words[place // 32]) >> (place % 32)) & 1) << bit
    return number


def gptq_value(tensors: Mapping[str, Array], bits: int, row: int, column: int) -> float:
    group = int(tensors["g_idx"][column])
    code = read_bits(tensors["qweight"][:, row], column, bits)
    zero = read_bits(tensors["qzeros"][group], row, bits) + 1
    return (code - zero) * float(tensors["scales"][group, row])


def awq_value(tensors: Mapping[str, Array], group_size: int, row: int, column: int) -> float:
    group = column // group_size
    shift = 4 * (0, 4, 1, 5, 2, 6, 3, 7)[row % 8]  # where a reader finds output 0, 1, … of a word
    code = (int(tensors["qweight"][column, row // 8]) >> shift) & 15
    zero = (int(tensors["qzeros"][group, row // 8]) >> shift) & 15
    return (code - zero) * float(tensors["scales"][group, row])


def compressed_value(tensors: Mapping[str, Array], bits: int, group_size: int, row: int, column: int) -> float:
    group, offset = column // group_size, 1 << (bits - 1)
    code = read_bits(tensors["weight_packed"][row], column, bits) - offset
    zero = 0
    if "weight_zero_point" in tensors:
        zero = read_bits(tensors["weight_zero_point"][:, group], row, bits) - offset
    return (code - zero) * float(tensors["weight_scale"][row, group])


def every_value(read: Any) -> Array:
    return np.array([[read(row, column) for column in range(COLUMNS)] for row in range(ROWS)], np.float32)


def assert_same(actual: BlockWeight, expected: BlockWeight) -> None:
    assert (actual.bits, actual.columns, actual.block) == (expected.bits, expected.columns, expected.block)
    np.testing.assert_array_equal(actual.codes, expected.codes)
    np.testing.assert_array_equal(actual.scales, expected.scales)
    np.testing.assert_array_equal(actual.all_zero_points(), expected.all_zero_points())
    assert (actual.zero_points is None) == (expected.zero_points is None)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_gptq(fmt: BlockFormat) -> None:
    weight = weight_of(fmt)
    tensors = gptq.pack(weight)
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "qweight": ("int32", (COLUMNS * fmt.bits // 32, ROWS)),
        "qzeros": ("int32", (COLUMNS // fmt.block, ROWS * fmt.bits // 32)),
        "scales": ("float16", (COLUMNS // fmt.block, ROWS)),
        "g_idx": ("int32", (COLUMNS,)),
    }
    values = every_value(lambda row, column: gptq_value(tensors, fmt.bits, row, column))
    np.testing.assert_array_equal(values, weight.dequantize())
    assert_same(LAYOUTS["gptq"].unpack(tensors, fmt.bits, symmetric=fmt.symmetric), weight)


def test_gptq_v2_stores_zero_points_as_they_are() -> None:
    weight = weight_of(BlockFormat(4, 32, symmetric=False))
    tensors = gptq.pack(weight)
    plus_one = (tensors["qzeros"].view(np.uint32) + np.uint32(0x11111111)).view(np.int32)  # how v1 readers convert
    np.testing.assert_array_equal(gptq.zero_points(plus_one, 4, v2=True), weight.zero_points)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.bits == 4], ids=str)
def test_awq(fmt: BlockFormat) -> None:
    weight = weight_of(fmt)
    tensors = awq.pack(weight)
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "qweight": ("int32", (COLUMNS, ROWS // 8)),
        "qzeros": ("int32", (COLUMNS // fmt.block, ROWS // 8)),
        "scales": ("float16", (COLUMNS // fmt.block, ROWS)),
    }
    values = every_value(lambda row, column: awq_value(tensors, fmt.block, row, column))
    np.testing.assert_array_equal(values, weight.dequantize())
    assert_same(LAYOUTS["awq"].unpack(tensors, fmt.bits, symmetric=fmt.symmetric), weight)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.bits != 3], ids=str)
def test_compressed_tensors(fmt: BlockFormat) -> None:
    weight = weight_of(fmt)
    tensors = compressed.pack(weight)
    shapes = {
        "weight_packed": ("int32", (ROWS, COLUMNS * fmt.bits // 32)),
        "weight_scale": ("float16", (ROWS, COLUMNS // fmt.block)),
        "weight_shape": ("int64", (2,)),
    }
    if not fmt.symmetric:
        shapes["weight_zero_point"] = ("int32", (ROWS * fmt.bits // 32, COLUMNS // fmt.block))
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == shapes
    assert tensors["weight_shape"].tolist() == [ROWS, COLUMNS]
    values = every_value(lambda row, column: compressed_value(tensors, fmt.bits, fmt.block, row, column))
    np.testing.assert_array_equal(values, weight.dequantize())
    assert_same(LAYOUTS["compressed-tensors"].unpack(tensors, fmt.bits, symmetric=fmt.symmetric), weight)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_of_bytes_are_what_matmulnbits_reads(name: str) -> None:
    weight, layout = weight_of(BlockFormat(4, 32, symmetric=False)), LAYOUTS[name]
    expected = weight.packed_codes().reshape(ROWS, -1)
    np.testing.assert_array_equal(layout.row_bytes(layout.pack(weight, "a")[layout.codes]), expected)


SYMMETRIC = BlockFormat(4, 32, symmetric=True)


@pytest.mark.parametrize(
    ("layout", "weight", "message"),
    [
        (gptq, weight_of(SYMMETRIC, rows=12), "a: GPTQ's layout needs a multiple of 8 outputs, not 12"),
        (gptq, weight_of(BlockFormat(8, 32, True), rows=6), "a: GPTQ's layout needs a multiple of 4 outputs, not 6"),
        (gptq, weight_of(BlockFormat(3, 32, True), rows=8), "a: GPTQ's layout needs a multiple of 32 outputs, not 8"),
        (gptq, weight_of(BlockFormat(5, 32, True)), "a: GPTQ checkpoints hold 3, 4 or 8 bits, not 5"),
        (awq, weight_of(SYMMETRIC, rows=12), "a: AWQ's layout needs a multiple of 8 outputs, not 12"),
        (awq, weight_of(BlockFormat(8, 32, True)), "a: AWQ checkpoints hold 4 bits, not 8"),
        (compressed, weight_of(BlockFormat(3, 32, True)), "a: compressed-tensors checkpoints hold 4 or 8 bits here"),
        (compressed, weight_of(BlockFormat(4, 32, False), rows=12), "a: zero points of 12 outputs do not fill"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(layout: Any, weight: BlockWeight, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layout.pack(weight, "a")


def test_zero_points_that_readers_disagree_on_are_refused() -> None:
    weight = weight_of(BlockFormat(4, 32, symmetric=False))
    assert weight.zero_points is not None
    weight.zero_points[3, 1] = 0
    with pytest.raises(InputError, match="a zero point of 0 has no form"):
        gptq.pack(weight, "a")
    weight.zero_points[3, 1] = 1
    tensors = gptq.pack(weight)
    tensors["qzeros"][1, 0] |= 15 << 12
    with pytest.raises(InputError, match="stored as all ones"):
        gptq.zero_points(tensors["qzeros"], 4)
