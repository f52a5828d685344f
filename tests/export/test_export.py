"""Whole exports through the command line: what a bundle holds, what is refused, and that a failure leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoImageProcessor

from builders import copy_checkpoint
from edgetune.cli import cli
from edgetune_export.settings import ExportSettings
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError, ParityError
from edgetune_runtime.images.smart import ImageSpec

EXPORT = ["export", "--checkpoint"]


def export(checkpoint: Path, output: Path, *options: str) -> dict[str, Any]:
    """Export and return the manifest's account of the bundle."""
    cli.main([*EXPORT, str(checkpoint), "--output", str(output), *options], standalone_mode=False)
    bundle: dict[str, Any] = json.loads((output / "manifest.json").read_text())["result"]["bundle"]
    return bundle


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_fp32_is_exact_and_says_so(family: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.load(request.getfixturevalue(f"{family}_bundle"))
    parity = bundle.manifest["result"]["bundle"]["parity"]
    assert parity["logits_max_abs_diff"] < 1e-4
    assert parity["token_agreement"] == 1.0
    assert parity["steps"] >= 3
    assert len(set(parity["image_tokens"])) >= 2
    assert bundle.family == family
    assert isinstance(bundle.spec, ImageSpec)
    assert bundle.limits.max_image_tokens == bundle.spec.most_tokens == bundle.spec.max_pixels // bundle.spec.factor**2


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 16), ("int8", 8), ("int4", 4)])
def test_rounded_precisions(qwen2_5_vl: Path, tmp_path: Path, precision: str, bits: int) -> None:
    bundle = export(qwen2_5_vl, tmp_path / "bundle", "--precision", precision)
    parity = bundle["parity"]
    assert parity["vision_mean_cosine"] > (0.99999 if bits == 16 else 0.995)
    # Random weights have no structure that forgives rounding; sixteen, eight and four bits still lie far apart.
    assert parity["mean_kl"] < {16: 1e-3, 8: 0.05, 4: 1.0}[bits]
    graph = onnx.load(tmp_path / "bundle/onnx/decoder_model_merged.onnx", load_external_data=False).graph
    kinds = [{a.name: a.i for a in node.attribute}.get("bits") for node in graph.node if node.op_type == "MatMulNBits"]
    # The last is the head's rows of an answer's tokens.
    assert kinds == {16: [], 8: [8] * 14, 4: [4] * 12 + [8] * 2}[bits]
    inputs = {value.name: value for value in graph.input}
    cache = inputs["past_key_values.0.key"].type.tensor_type
    assert cache.elem_type == (onnx.TensorProto.FLOAT16 if bits == 16 else onnx.TensorProto.FLOAT)
    assert [dim.dim_value or dim.dim_param for dim in cache.shape.dim] == ["batch_size", 2, "past_length", 32]


def unpacked(bundle: Path, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read an asymmetric int4 weight [N, K] back from the file, by the operator's specification."""
    model = onnx.load(bundle / "onnx/decoder_model_merged.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    packed, scales, packed_zeros = (tensors[f"{name}.weight_{part}"] for part in ("codes", "scales", "zeros"))
    rows, blocks, size = packed.shape
    weight = np.zeros((rows, blocks * size * 2), np.float32)
    for row in range(rows):
        for block in range(blocks):
            zero = (packed_zeros[row, block // 2] >> (4 * (block % 2))) & 15
            for byte in range(size):
                for half in range(2):
                    code = (packed[row, block, byte] >> (4 * half)) & 15
                    column = (block * size + byte) * 2 + half
                    weight[row, column] = (float(code) - float(zero)) * scales[row, block]
    return weight


def test_int4_weights_are_the_checkpoints_rounded_to_nearest(qwen3_vl: Path, int4_bundle: Path) -> None:
    names = load_file(qwen3_vl / "model.safetensors")
    original = next(array for name, array in names.items() if name.endswith("layers.1.mlp.down_proj.weight"))
    ours = unpacked(int4_bundle, "model.layers.1.mlp.down_proj")
    blocks = original.reshape(len(original), -1, 32)
    low, high = np.minimum(blocks.min(2, keepdims=True), 0), np.maximum(blocks.max(2, keepdims=True), 0)
    step = (high - low) / 15
    zero = np.round(-low / step)
    expected = (np.clip(np.round(blocks / step) + zero, 0, 15) - zero) * step
    np.testing.assert_allclose(ours, expected.reshape(original.shape), atol=1e-6)


def test_the_folder_serves_other_loaders_and_can_be_moved(qwen3_vl: Path, int4_bundle: Path, tmp_path: Path) -> None:
    import onnxruntime
    from transformers import AutoConfig, AutoTokenizer

    moved = tmp_path / "elsewhere"
    shutil.copytree(int4_bundle, moved)
    assert AutoConfig.from_pretrained(moved).model_type == "qwen3_vl"
    assert AutoTokenizer.from_pretrained(moved).chat_template == AutoTokenizer.from_pretrained(qwen3_vl).chat_template
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (moved / name).read_bytes() == (qwen3_vl / name).read_bytes()
    # transformers.js does no step that the file leaves to transformers' class
    told, original = (json.loads((folder / "preprocessor_config.json").read_text()) for folder in (moved, qwen3_vl))
    images: Any = AutoImageProcessor.from_pretrained(qwen3_vl, backend="pil")
    steps = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "rescale_factor", "resample")
    assert told == original | {name: getattr(images, name) for name in steps}
    for path in (moved / "onnx").glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        places = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
        assert places <= {f"{path.name}.data"}
        onnxruntime.InferenceSession(str(path))


def test_symmetric_weights_leave_zero_points_out_and_options_reach_the_graph(qwen3_vl: Path, tmp_path: Path) -> None:
    options = ["--symmetric", "--block-size", "64", "--head-precision", "int4", "--vision-precision", "fp32"]
    bundle = export(qwen3_vl, tmp_path / "bundle", *options, "--max-length", "300")
    assert bundle["limits"]["max_length"] == 300
    assert bundle["vision_precision"] == "fp32" and bundle["parity"]["vision_max_abs_diff"] < 1e-4
    graph = onnx.load(tmp_path / "bundle/onnx/decoder_model_merged.onnx", load_external_data=False).graph
    quantized = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(quantized) == 4 * 4 + 2  # the head, and its rows of an answer's tokens
    for node in quantized:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"]) == (4, 64)
        assert len(node.input) == 3


def test_a_bundle_for_smaller_pictures_says_so_to_every_reader(qwen3_vl: Path, tmp_path: Path) -> None:
    limits = ["--min-pixels", "2048", "--max-pixels", "12288"]
    bundle = export(qwen3_vl, tmp_path / "bundle", "--precision", "fp32", *limits)
    assert bundle["limits"] == {"max_length": 12 + 1024, "max_image_tokens": 12}
    spec = Bundle.load(tmp_path / "bundle").spec
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "bundle")
    for size in ((900, 400), (40, 32)):
        picture = Image.new("RGB", size, "teal")
        pixels = theirs(picture, return_tensors="np")
        np.testing.assert_array_equal(spec.arrays(picture)["image_grid_thw"], pixels["image_grid_thw"])


def test_cuda_bundles_compute_in_float16(qwen3_vl: Path, tmp_path: Path) -> None:
    bundle = export(qwen3_vl, tmp_path / "bundle", "--target", "cuda")
    assert bundle["target"] == "cuda" and bundle["vision_precision"] == "fp16"
    graph = onnx.load(tmp_path / "bundle/onnx/decoder_model_merged.onnx", load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types["past_key_values.0.key"] == types["present.0.value"] == onnx.TensorProto.FLOAT16
    assert types["inputs_embeds"] == types["logits"] == onnx.TensorProto.FLOAT


def broken(source: Path, target: Path, damage: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    copy_checkpoint(source, target)
    config = json.loads((target / "config.json").read_text())
    if damage == "adapter":
        (target / "config.json").unlink()
        (target / "adapter_config.json").write_text("{}")
    elif damage in ("preprocessor_config.json", "tokenizer.json", "config.json"):
        (target / damage).unlink()
    elif damage == "model type":
        (target / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vlm"}))
    elif damage == "no weights":
        (target / "model.safetensors").unlink()
    elif damage in ("missing weight", "extra weight"):
        tensors = load_file(target / "model.safetensors")
        name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
        if damage == "missing weight":
            del tensors[name]
        else:
            tensors[name.replace("layers.1", "layers.77")] = tensors[name]
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    elif damage == "chat template":
        path = target / "chat_template.jinja"
        path.write_text(path.read_text().replace("assistant\n", "assistant\n<think>"))
    return target


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("adapter", "is a LoRA adapter, not a whole checkpoint"),
        ("config.json", "no config.json"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model type", "qwen3_vlm"),
        ("no weights", "no model.safetensors"),
        ("missing weight", "1 missing keys when loading, such as .*layers.1.mlp.up_proj"),
        ("extra weight", "1 unexpected keys when loading, such as .*layers.77.mlp.up_proj"),
        ("chat template", "the chat template renders '<think>' where the family's prompt has ''"),
    ],
)
def test_unusable_checkpoints_are_refused(qwen3_vl: Path, tmp_path: Path, damage: str, message: str) -> None:
    checkpoint = broken(qwen3_vl, tmp_path / "checkpoint", damage)
    with pytest.raises(InputError, match=message) as caught:
        export(checkpoint, tmp_path / "bundle")
    assert str(checkpoint) in str(caught.value) or damage == "model type"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["checkpoint"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "--precision: 'int3' is not one of fp32, fp16, int8, int4"),
        ({"block_size": 48}, "--block-size: 48 is not one of 32, 64, 128"),
        ({"target": "tpu"}, "--target: 'tpu' is not one of cpu, cuda"),
        ({"vision_precision": "int4"}, "--vision-precision: 'int4' is not one of fp32"),
        ({"max_length": 0}, "--max-length: 0 must be at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportSettings(**options)


def test_a_length_over_the_models_window_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max length 5000 is over the model's 4096"):
        export(qwen3_vl, tmp_path / "bundle", "--max-length", "5000")


def test_an_export_that_overflows_fails_and_leaves_nothing(
    qwen3_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copy_checkpoint(qwen3_vl, tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(name for name in tensors if name.endswith("visual.blocks.1.mlp.linear_fc2.weight"))
    tensors[name] = tensors[name] * np.float32(1e7)  # over float16's range
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ParityError, match="NaN or infinity"):
        export(checkpoint, tmp_path / "bundle", "--precision", "fp16")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*EXPORT, str(checkpoint), "--output", str(tmp_path / "bundle"), "--precision", "fp16"])
    assert stopped.value.code == 1
    assert "hint: float16 overflows on this model" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / ".bundle.partial").exists()


def test_unchanged_inputs_are_skipped_and_changed_ones_are_not(qwen3_vl: Path, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(qwen3_vl, tmp_path / "checkpoint")
    output = tmp_path / "bundle"
    export(checkpoint, output)
    before = (output / "manifest.json").stat().st_mtime_ns
    export(checkpoint, output)
    assert (output / "manifest.json").stat().st_mtime_ns == before
    config = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps({**config, "temperature": 1.0}))
    export(checkpoint, output)
    assert (output / "manifest.json").stat().st_mtime_ns > before
