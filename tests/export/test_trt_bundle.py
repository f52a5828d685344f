"""`edgetune export --format trt` as a user calls it: what it writes, what it measures, what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from edgetune.cli import cli
from edgetune_calibrate.vision import InputRanges
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat
from reference import load_model
from weight_sets import build_weight_set

G64 = BlockFormat(4, 64, symmetric=False)


def export(checkpoint: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Export and return the bundle's fields."""
    place = ["--checkpoint", str(checkpoint), "--format", "trt", "--output", str(output), "--max-length", "256"]
    cli.main(["export", *place, *arguments], standalone_mode=False)
    fields: dict[str, Any] = json.loads((output / "manifest.json").read_text())["result"]["bundle"]
    return fields


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_a_weight_set_with_its_head_and_int8_vision(qwen3_vl: Path, tmp_path: Path) -> None:
    model = load_model(qwen3_vl)
    grids = torch.tensor([[1, 8, 8]])
    patches = torch.randn(64, 3 * 2 * model.config.vision_config.patch_size**2)
    with torch.no_grad(), InputRanges(model, "model.visual") as watched:
        model.model.visual(patches, grids)
    weights = build_weight_set(
        qwen3_vl, tmp_path / "set", choose=lambda name: G64, head=G64, extra={"vision_ranges": watched.ranges()}
    )
    output = tmp_path / "bundle"
    fields = export(qwen3_vl, output, "--weights", str(weights), "--vision-precision", "int8", "--trt-profile", "10.16")
    bundle = Bundle.load(output)
    assert bundle.format == "trt" and bundle.half
    assert (fields["precision"], fields["head_precision"], fields["vision_precision"]) == (
        "int4",
        "int4",
        "int8-static",
    )
    # Against transformers with the set's own values, in float32 activations; and shipped, in float16.
    assert fields["parity"]["exact"]["logits_max_abs_diff"] < 1e-4
    assert fields["parity"]["exact"]["answers_equal"] == fields["parity"]["exact"]["answers"]
    assert fields["parity"]["vision_mean_cosine"] > 0.99
    kinds = nodes(output / "trt/vision.onnx")
    assert 8 <= kinds["QuantizeLinear"] <= 16 and kinds["DequantizeLinear"] == 2 * kinds["QuantizeLinear"]
    assert nodes(output / "trt/decoder.onnx")["Attention"] == bundle.model["layers"]
    names = {path.name for path in (output / "trt").iterdir()}
    assert names <= {"vision.onnx", "vision.onnx.data", "decoder.onnx", "decoder.onnx.data", "embeddings.npy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp32"], "TensorRT bundles compute in float16"),
        (["--head-precision", "fp32"], "TensorRT bundles compute in float16"),
        (["--block-size", "32"], "has blocks of 32, and TensorRT's INT4 needs 64 or 128"),
        (["--vision-precision", "int8"], "int8 vision for TensorRT needs the ranges of its activations"),
    ],
)
def test_what_tensorrt_cannot_hold_is_refused(
    qwen2_5_vl: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export(qwen2_5_vl, tmp_path / "bundle", *arguments)
    assert not (tmp_path / "bundle").exists()


def test_short_blocks_of_a_weight_set_are_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    weights = build_weight_set(qwen3_vl, tmp_path / "set", choose=lambda name: BlockFormat(4, 32, symmetric=True))
    with pytest.raises(InputError, match=r"self_attn\.q_proj has blocks of 32") as caught:
        export(qwen3_vl, tmp_path / "bundle", "--weights", str(weights))
    assert caught.value.hint is not None and "--trt-target" in caught.value.hint


@pytest.mark.parametrize("target", ["sm", "8.66", "orin"])
def test_targets_are_read(qwen3_vl: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--checkpoint", str(qwen3_vl), "--output", str(tmp_path / "bundle"), "--format", "trt"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", *place, "--trt-target", target])
    assert stopped.value.code == 2
    assert f"unknown target '{target}'" in capsys.readouterr().err
