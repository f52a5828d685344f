"""The canonical weight set: read back exactly, readable by safetensors alone, and strict about its rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgetune_core.stage import run_stage
from edgetune_core.weightset import WeightSet, write_block
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, round_to_nearest


def legal(fmt: BlockFormat, rows: int = 6, columns: int = 64, seed: int = 0) -> BlockWeight:
    """Random weights under the set's rules: float16 scales, zero points of at least 1."""
    rng = np.random.default_rng(seed)
    groups = columns // fmt.block
    top = (1 << fmt.bits) - 1
    return BlockWeight(
        codes=rng.integers(0, top + 1, (rows, groups, fmt.block), dtype=np.uint8),
        scales=rng.uniform(0.01, 1, (rows, groups)).astype(np.float16).astype(np.float32),
        zero_points=None if fmt.symmetric else rng.integers(1, top + 1, (rows, groups), dtype=np.uint8),
        bits=fmt.bits,
        columns=columns,
    )


WEIGHTS = {
    "layers.0.a": legal(BlockFormat(4, 32, symmetric=False), seed=1),
    "layers.0.b": legal(BlockFormat(4, 16, symmetric=True), seed=2),
    "layers.0.c": legal(BlockFormat(3, 32, symmetric=False), seed=3),
    "layers.0.d": legal(BlockFormat(8, 64, symmetric=True), seed=4),
}
NORM = np.linspace(0.5, 1.5, 64, dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def build(work: Path) -> dict[str, object]:
        entries = write_block(work, "blocks/000.safetensors", WEIGHTS, {"layers.0.norm.weight": NORM})
        return {"weightset": {"schema": 1, "method": "rtn", **entries}}

    return run_stage("calibrate", tmp_path / "set", inputs={}, settings={}, build=build).folder


def test_a_set_is_read_back_as_it_was_written(folder: Path) -> None:
    weights = WeightSet.load(folder)
    assert weights.names == tuple(WEIGHTS)
    assert weights.method == "rtn"
    for name, expected in WEIGHTS.items():
        actual = weights.weight(name)
        assert name in weights
        assert weights.format(name) == BlockFormat(expected.bits, expected.block, expected.zero_points is None)
        np.testing.assert_array_equal(actual.codes, expected.codes)
        np.testing.assert_array_equal(actual.scales, expected.scales)
        np.testing.assert_array_equal(actual.dequantize(), expected.dequantize())
    assert weights.overrides == ("layers.0.norm.weight",)
    np.testing.assert_array_equal(weights.override("layers.0.norm.weight"), NORM)


def test_the_documented_tensors_alone_give_the_weights(folder: Path) -> None:
    tensors = load_file(folder / "blocks/000.safetensors")
    q, scale, zero = (tensors[f"layers.0.a.{kind}"] for kind in ("q", "scale", "zero"))
    codes = np.empty((6, 64))
    codes[:, 0::2], codes[:, 1::2] = q % 16, q // 16
    by_group = codes.reshape(6, 2, 32) - zero[:, :, None].astype(float)
    expected = by_group * scale[:, :, None].astype(float)
    np.testing.assert_allclose(WEIGHTS["layers.0.a"].dequantize(), expected.reshape(6, 64), rtol=1e-6)
    assert "layers.0.b.zero" not in tensors


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scales": np.full((6, 2), 0.1, np.float32)}, "float16"),
        ({"scales": np.full((6, 2), -0.5, np.float32)}, "positive"),
        ({"scales": np.full((6, 2), np.inf, np.float32)}, "positive and finite"),
        ({"zero_points": np.zeros((6, 2), np.uint8)}, "zero point"),
        ({"codes": np.full((6, 2, 32), 16, np.uint8)}, "code over 15"),
        ({"bits": 5}, "5 bits"),
        ({"columns": 60}, "group size"),
    ],
)
def test_what_some_format_could_not_hold_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    broken = replace(WEIGHTS["layers.0.a"], **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=told):
        write_block(tmp_path, "a.safetensors", {"layer": broken}, {})
    assert not (tmp_path / "a.safetensors").exists()


def test_round_to_nearest_alone_breaks_the_rules(tmp_path: Path) -> None:
    """Its scales are float32; a producer has to round them before it chooses codes."""
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    with pytest.raises(InputError, match="float16"):
        write_block(tmp_path, "a.safetensors", {"layer": round_to_nearest(weight, BlockFormat(4, 32, False))}, {})


def test_a_changed_file_and_an_unknown_schema_are_refused(folder: Path) -> None:
    path = folder / "blocks/000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"000\.safetensors"):
        WeightSet.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["result"]["weightset"]["schema"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="schema 7"):
        WeightSet.load(folder, verify=False)


def test_unknown_names_and_files_outside_are_refused(folder: Path) -> None:
    weights = WeightSet.load(folder)
    with pytest.raises(InputError, match="no layer 'x'"):
        weights.weight("x")
    with pytest.raises(InputError, match="does not replace"):
        weights.override("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["result"]["weightset"]["linears"]["layers.0.a"]["file"] = "../a.safetensors"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="leads out"):
        WeightSet.load(folder, verify=False).weight("layers.0.a")
