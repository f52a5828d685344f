"""Bundles from a weight set: its exact values, checked against the dequantized model, drift told, origin named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from PIL import Image

from edgetune.cli import cli
from edgetune_core.weightset import WeightSet
from edgetune_export.check.answers import Answers
from edgetune_export.check.drift import measure_exact, require_exact
from edgetune_export.check.exact import GraphDecoder, for_every_step, read_answer
from edgetune_export.check.reference import generated_cases
from edgetune_export.checkpoint import open_checkpoint
from edgetune_runtime.backends import ImageFeatures
from edgetune_runtime.errors import InputError, ParityError
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.quant.blocks import BlockFormat
from reference import greedy_sample, load_model
from weight_sets import build_weight_set, memory_names

Float = npt.NDArray[np.float32]
TEXT = "model.language_model"


def export(checkpoint: Path, weights: Path, output: Path, *options: str) -> dict[str, Any]:
    """Export from a weight set and return the manifest's account of the bundle."""
    paths = ["--checkpoint", str(checkpoint), "--weights", str(weights), "--output", str(output)]
    cli.main(["export", *paths, *options], standalone_mode=False)
    bundle: dict[str, Any] = json.loads((output / "manifest.json").read_text())["result"]["bundle"]
    return bundle


def records(folder: Path, count: int = 3) -> Path:
    """A few pictures with a box each."""
    folder.mkdir()
    lines = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": "the red cup", "bbox": [4, 5, 60, 70]}))
    (folder / "calib.jsonl").write_text("\n".join(lines))
    return folder / "calib.jsonl"


@pytest.fixture(scope="module")
def calibrated(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A weight set with records, asymmetric in groups of 64, 8-bit head; and the bundle written from it."""
    folder = tmp_path_factory.mktemp("calibrated")
    weights = build_weight_set(
        qwen3_vl,
        folder / "set",
        choose=lambda name: BlockFormat(4, 64, symmetric=False),
        head=BlockFormat(8, 32, symmetric=True),
        overrides={f"{TEXT}.norm.weight": memory_names(qwen3_vl)[f"{TEXT}.norm.weight"] * np.float32(1.01)},
        extra={"method": "gptq", "calibration": {"samples": 3}},
        data=records(folder / "data"),
    )
    export(qwen3_vl, weights, folder / "bundle")
    return weights, folder / "bundle"


def test_the_manifest_names_the_set_and_what_was_checked(calibrated: tuple[Path, Path]) -> None:
    weights, folder = calibrated
    bundle = json.loads((folder / "manifest.json").read_text())["result"]["bundle"]
    assert bundle["calibration"] == {
        "method": "gptq",
        "bits": 4,
        "group_size": 64,
        "symmetric": False,
        "mixed": False,
        "head_bits": 8,
        "samples": 3,
        "sha256": WeightSet.load(weights).sha256,
        "data": {"data": sha256_file(weights.parent / "data" / "calib.jsonl")},
    }
    assert (bundle["precision"], bundle["head_precision"]) == ("int4", "int8")
    exact, drift = bundle["parity"]["exact"], bundle["parity"]["drift"]
    assert exact["token_agreement"] == 1 and exact["answers_equal"] == exact["answers"] == 6
    assert exact["logits_max_abs_diff"] <= 1e-4 * max(1, exact["logits_rms"])
    assert drift["records"] == 3 and drift["source"].endswith("calib.jsonl")
    # Four random bits cost far more than the difference in the order of additions.
    assert drift["mean_kl"] > 1e-4 > exact["mean_kl"]


def read_back(folder: Path, name: str) -> Float:
    """A weight [N, K] of MatMulNBits from the file, by the operator's specification."""
    model = onnx.load(folder / "onnx/decoder_model_merged.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    codes, scales, zeros = (tensors.get(f"{name}.weight_{part}") for part in ("codes", "scales", "zeros"))
    node = next(node for node in model.graph.node if f"{name}.weight_codes" in node.input)
    bits = {attribute.name: attribute.i for attribute in node.attribute}["bits"]
    assert codes is not None and scales is not None
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], -1)
        if zeros is not None:
            zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(len(zeros), -1)[:, : scales.shape[1]]
    zero = np.float32(1 << (bits - 1)) if zeros is None else zeros[:, :, None].astype(np.float32)
    weight: Float = ((codes.astype(np.float32) - zero) * scales[:, :, None]).reshape(len(codes), -1)
    return weight


def test_the_files_hold_exactly_the_sets_values(calibrated: tuple[Path, Path]) -> None:
    weights, folder = calibrated
    canonical = WeightSet.load(weights)
    for graph_name, names in {
        "model.layers.2.self_attn.q_proj_k_proj_v_proj": [f"self_attn.{part}_proj" for part in "qkv"],
        "model.layers.2.mlp.gate_proj_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "model.layers.2.mlp.down_proj": ["mlp.down_proj"],
    }.items():
        expected = [canonical.weight(f"{TEXT}.layers.2.{name}").dequantize() for name in names]
        np.testing.assert_array_equal(read_back(folder, graph_name), np.concatenate(expected))
    np.testing.assert_array_equal(read_back(folder, "lm_head"), canonical.weight("lm_head").dequantize())
    model = onnx.load(folder / "onnx/decoder_model_merged.onnx")
    norm = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "model.norm.weight")
    np.testing.assert_array_equal(norm, canonical.override(f"{TEXT}.norm.weight"))


def product(folder: Path, name: str) -> onnxruntime.InferenceSession:
    """One product of a decoder as a model of its own."""
    path = folder / "onnx/decoder_model_merged.onnx"
    model = onnx.load(path)
    node = next(node for node in model.graph.node if f"{name}.weight_codes" in node.input)
    value = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    used = [tensor for tensor in model.graph.initializer if tensor.name in node.input]
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [value(node.input[0], float32, ["rows", "columns"])],
        [value(node.output[0], float32, None)],
        used,
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    return onnxruntime.InferenceSession(alone.SerializeToString())


def test_level_0_computes_the_sets_product_and_level_4_nearly(
    qwen3_vl: Path, calibrated: tuple[Path, Path], tmp_path: Path
) -> None:
    weights, fast = calibrated
    told = export(qwen3_vl, weights, tmp_path / "exact", "--accuracy-level", "0")
    assert told["accuracy_level"] == 0
    states = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    weight = WeightSet.load(weights).weight(f"{TEXT}.layers.1.mlp.down_proj").dequantize().astype(np.float64)
    expected = states @ weight.T
    apart = []
    for folder in (tmp_path / "exact", fast):
        session = product(folder, "model.layers.1.mlp.down_proj")
        (actual,) = session.run(None, {session.get_inputs()[0].name: states})
        apart.append(np.abs(actual - expected).max() / np.abs(expected).max())
    assert apart[0] < 1e-6 < 1e-4 < apart[1] < 0.05


def test_weights_that_are_not_the_references_are_noticed(qwen3_vl: Path, int4_bundle: Path, tmp_path: Path) -> None:
    """A bundle rounded to nearest, held against the checkpoint's own weights as if these had been written."""
    checkpoint = open_checkpoint(qwen3_vl)
    model = load_model(qwen3_vl)
    samples = [greedy_sample(model, case, checkpoint.tokens) for case in generated_cases(checkpoint)]
    table = memory_names(qwen3_vl)[f"{TEXT}.embed_tokens.weight"]
    shutil.copytree(int4_bundle / "onnx", tmp_path / "onnx")
    path = tmp_path / "onnx" / "decoder_model_merged.onnx"
    ir.save(for_every_step(ir.load(path)), path)
    decoder, answers = GraphDecoder(path), Answers(checkpoint)
    prompts = [answers.prompt(one.case, ImageFeatures(one.features[0], one.features[1:])) for one in samples]
    read = [
        read_answer(decoder, lambda ids: table[ids], prompt, sample.tokens)[0]
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    exact = measure_exact(answers, samples, read)
    with pytest.raises(ParityError, match="the written weights differ from the dequantized reference"):
        require_exact(exact, half=False)
    with pytest.raises(ParityError, match="in float16"):
        require_exact(exact, half=True)


def test_answers_far_from_the_merged_model_fail_the_export(qwen3_vl: Path, tmp_path: Path) -> None:
    """A set whose values are faithfully written but useless: the final norm hides all but one channel."""
    useless = np.zeros(128, np.float32)
    useless[3] = 1
    weights = build_weight_set(qwen3_vl, tmp_path / "set", overrides={f"{TEXT}.norm.weight": useless})
    with pytest.raises(ParityError, match="predictions are off"):
        export(qwen3_vl, weights, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["set"]


def test_records_that_are_gone_are_replaced_and_that_is_told(qwen3_vl: Path, tmp_path: Path) -> None:
    data = records(tmp_path / "data")
    weights = build_weight_set(qwen3_vl, tmp_path / "set", data=data)
    data.write_text(data.read_text() + "\n")
    drift = export(qwen3_vl, weights, tmp_path / "bundle")["parity"]["drift"]
    assert drift["records"] == 3
    assert drift["source"] == f"generated pictures: {data} has changed since the calibration"


def test_qwen2_5_vl_with_a_rounded_head_on_cuda_terms(qwen2_5_vl: Path, weight_set_2_5: Path, tmp_path: Path) -> None:
    bundle = export(qwen2_5_vl, weight_set_2_5, tmp_path / "bundle", "--target", "cuda", "--head-precision", "int4")
    assert bundle["parity"]["exact"]["mean_kl"] < 1e-3
    assert bundle["calibration"]["head_bits"] is None and bundle["head_precision"] == "int4"


@pytest.mark.parametrize(
    ("group", "options", "block"), [(128, [], 128), (64, [], 64), (128, ["--block-size", "32"], 32), (16, [], 32)]
)
def test_a_head_that_the_set_leaves_out_has_scales_as_the_sets_layers(
    qwen3_vl: Path, tmp_path: Path, group: int, options: list[str], block: int
) -> None:
    """Unless the set's groups are none that an export rounds in."""
    weights = build_weight_set(qwen3_vl, tmp_path / "set", choose=lambda name: BlockFormat(4, group, symmetric=False))
    export(qwen3_vl, weights, tmp_path / "bundle", "--check", "none", *options)
    model = onnx.load(tmp_path / "bundle/onnx/decoder_model_merged.onnx", load_external_data=False)
    (head,) = (node for node in model.graph.node if "lm_head.weight_codes" in node.input)
    assert onnx.helper.get_node_attr_value(head, "block_size") == block


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--precision", "int8"], "exclude each other"),
        (["--head-precision", "int4"], "has the head already"),
    ],
)
def test_options_that_contradict_the_set_are_refused(
    qwen3_vl: Path, calibrated: tuple[Path, Path], tmp_path: Path, options: list[str], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        export(qwen3_vl, calibrated[0], tmp_path / "bundle", *options)


def test_a_set_of_another_checkpoint_is_refused(qwen3_vl_bf16: Path, weight_set: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibrated from another checkpoint"):
        export(qwen3_vl_bf16, weight_set, tmp_path / "bundle")
