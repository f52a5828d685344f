"""calibrate and export of every family in every format, on a conversation with two pictures and on a box."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from calibrate.test_conversations import FIND, TALK
from edgetune_core.blocks import of_blocks
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.weightset import WeightSet
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.hf_config import compressed_config
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.records import read_entries
from edgetune_runtime.session import Session
from families.checkpoints import BUILDERS, build_internvl
from families.conftest import Build, run
from hf_reader import dense_tensors, tensors_of
from train.conftest import write_records

EXPORTED = [name for name in BUILDERS if FAMILIES[name].exports]
FORMATS = {
    "onnx": [],
    "onnx plain": ["--dialect", "plain"],
    "onnx openvino": ["--target", "openvino"],
    "gptq": [],
    "awq": [],
    "compressed-tensors": [],
    "trt": ["--vision-precision", "int8", "--max-length", "2048"],
}

Sets = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of a conversation about two pictures and of a box."""
    return write_records(tmp_path_factory.mktemp("talks") / "data", records=[TALK, FIND])


@pytest.fixture(scope="session")
def calibrated(merged: Build, talks: Path) -> Sets:
    """Gives a family's merged checkpoint, and a weight set of it in groups of 64."""

    def make(name: str) -> tuple[Path, Path]:
        folder = merged(name)
        if not (folder / "set").is_dir():
            options = ["--group-size", 64, "--head", 16]
            run("calibrate", "--checkpoint", folder / "merged", "--data", talks, "--output", folder / "set", *options)
        return folder / "merged", folder / "set"

    return make


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_weight_set(name: str, kind: str, calibrated: Sets, talks: Path, tmp_path: Path) -> None:
    checkpoint, weights = calibrated(name)
    format_, bundle = kind.partition(" ")[0], tmp_path / "bundle"
    options = ["--weights", weights, "--format", format_, *FORMATS[kind]]
    if FAMILIES[name].recurrent and kind in ("onnx plain", "trt"):
        with pytest.raises(InputError, match=r"layers of .* are not written in this format"):
            run("export", "--checkpoint", checkpoint, "--output", bundle, *options)
        return
    run("export", "--checkpoint", checkpoint, "--output", bundle, *options)
    parity = Bundle.load(bundle).manifest["result"]["bundle"]["parity"]
    # The dialect of other engines, and TensorRT, have normalised pixels alone.
    assert ("vision_pixels" in Bundle.load(bundle).files) == (kind not in ("onnx plain", "trt"))
    # Three generated pictures and both records; a conversation is asked for its last answer, after two pictures.
    assert parity["exact"]["answers_equal"] == parity["exact"]["answers"] == 5
    assert (parity["drift"]["records"], parity["drift"]["source"]) == (2, str(talks))
    assert parity["vision_mean_cosine"] > 0.99
    if format_ == "trt":
        return  # its engines need a GPU; the check ran their graphs
    with Session.load(bundle, engine="openvino" if kind == "onnx openvino" else None) as session:
        picture, other = read_entries(talks)[1].images[0], read_entries(talks)[0].images[0]
        asked = [session.request(phrase) for phrase in ("the cup", "a jar on the left", "the cup")]
        answers = [session.answer(picture, words, max_new_tokens=4) for words in asked]
        assert [answer.timings.known > 0 for answer in answers] == [False, True, True]
        assert answers[0] == answers[2] and answers[0].timings.tokens <= 4
        # An answer does not tell whether its picture had been read before.
        session.answer(other, asked[0], max_new_tokens=4)
        anew = session.answer(picture, asked[1], max_new_tokens=4)
        assert anew == answers[1] and anew.timings.known == 0
        # Weights are random, and yet every answer is one: with one pass or several, alone or side by side.
        for shown in (picture, other):
            alone = [session.answer(shown, words, max_new_tokens=300) for words in asked]
            assert all(answer.status != "unparsed" for answer in alone), alone
            assert all(answer.timings.passes <= answer.timings.tokens for answer in alone)
            assert len(session.answer(shown, asked, max_new_tokens=300)) == 3
            free = session.answer(shown, asked[0], max_new_tokens=60, constrained=False)
            assert free.timings.passes == free.timings.tokens
    engine = "openvino" if kind == "onnx openvino" else None
    with Session.load(bundle, engine=engine, prefix_cache_mb=500) as session:
        for shown in (picture, other):
            session.answer(shown, asked[0], max_new_tokens=4)
        again = session.answer(picture, asked[1], max_new_tokens=4)
        assert again == answers[1] and again.timings.known > 0
    if format_ != "onnx":
        check_tensors(name, checkpoint, weights, bundle)


@pytest.mark.parametrize("format_", ["onnx", "gptq", "trt"])
def test_internvl_with_a_decoder_of_qwen3(format_: str, talks: Path, tmp_path: Path) -> None:
    """InternVL 3.5: norms of queries and keys, no biases."""
    checkpoint = build_internvl(tmp_path / "base", text="qwen3")
    options = ["--group-size", 64, "--head", 16]
    run("calibrate", "--checkpoint", checkpoint, "--data", talks, "--output", tmp_path / "set", *options)
    bundle = tmp_path / "bundle"
    place = ["--format", format_, "--max-length", 2048, "--output", bundle]
    run("export", "--checkpoint", checkpoint, "--weights", tmp_path / "set", *place)
    exact = Bundle.load(bundle).manifest["result"]["bundle"]["parity"]["exact"]
    assert exact["answers_equal"] == exact["answers"] == 5


@pytest.mark.parametrize("name", ["internvl", "llava_onevision", "smolvlm", "idefics3"])
def test_a_quantized_head(name: str, tiny: Build, talks: Path, tmp_path: Path) -> None:
    """For which the model runs once more when its pictures are gone."""
    options = ["--group-size", 64, "--head", 8, "--output", tmp_path / "set"]
    run("calibrate", "--checkpoint", tiny(name), "--data", talks, *options)
    assert "lm_head" in WeightSet.load(tmp_path / "set")


def test_layers_that_differ_are_found_under_every_readers_names() -> None:
    modules = FAMILIES["qwen3_5"].modules
    assert modules is not None
    formats = {f"{modules.blocks}.0.{role}": BlockFormat(4, 64, symmetric=True) for role in modules.linears}
    formats |= {f"{modules.blocks}.1.{role}": BlockFormat(8, 64, symmetric=True) for role in modules.linears}
    groups = compressed_config(formats, modules)["config_groups"].values()
    for name in ("language_model.model.layers.1.linear_attn.in_proj_qkvz", "model.layers.1.linear_attn.in_proj_ba"):
        [group] = [group for group in groups if any(re.match(entry[3:], name) for entry in group["targets"])]
        assert group["weights"]["num_bits"] == 8


def test_a_linear_that_no_block_has_is_not_left_out(tiny: Build) -> None:
    checkpoint = HubCheckpoint.open(tiny("llava"))
    modules = replace(checkpoint.modules, linears=(*checkpoint.modules.linears, "mlp.gate_up_proj"))
    model = checkpoint.load_model(torch.float32)
    with pytest.raises(InputError, match=r"no block of the decoder has mlp\.gate_up_proj"):
        of_blocks(modules, model.get_submodule(modules.blocks))
    with pytest.raises(InputError, match=r"no block of the decoder has mlp\.gate_up_proj"):
        DecoderWeights(model, modules, layers_format=None, head_format=None)


def test_a_length_without_room_for_a_picture_is_refused(tiny: Build, tmp_path: Path) -> None:
    options = ["--precision", "int4", "--max-length", 64, "--output", tmp_path / "bundle"]
    with pytest.raises(InputError, match="max length 64 leaves no room for a picture: a small one takes"):
        run("export", "--checkpoint", tiny("smolvlm"), *options)


@pytest.mark.parametrize("options", [("--precision", "fp16"), ("--precision", "int4", "--target", "cuda")])
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_states_keep_float32_in_a_bundle_of_float16(
    name: str, options: tuple[str, ...], tiny: Build, tmp_path: Path
) -> None:
    run("export", "--checkpoint", tiny(name), *options, "--output", tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    parity = bundle.manifest["result"]["bundle"]["parity"]
    exact = parity.get("exact", {"answers_equal": 3, "answers": 3})  # fp16 alone rounds nothing else
    assert bundle.half and exact["answers_equal"] >= exact["answers"] - 1 == 2  # float16 may turn a tie
    assert parity["token_agreement"] == 1 or "int4" in options
    graph = onnxruntime.InferenceSession(bundle.files["decoder"], providers=["CPUExecutionProvider"])
    kept = {node.name.rpartition(".")[2]: node.type for node in graph.get_inputs() if "past" in node.name}
    half = dict.fromkeys(("key", "value"), "tensor(float16)")
    assert kept in ({"conv": "tensor(float)", **half}, {"conv": "tensor(float)", "state": "tensor(float)", **half})


@pytest.mark.parametrize("options", [("--dialect", "plain", "--precision", "int4"), ("--format", "trt")])
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_layers_with_a_state_are_refused_before_anything_is_written(
    name: str, options: tuple[str, ...], tiny: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), pytest.raises(InputError, match="are not written in this format"):
        run("export", "--checkpoint", tiny(name), *options, "--output", tmp_path / "bundle")
    assert "vision" not in caplog.text  # which the whole export of another family tells of


def test_an_engine_of_packed_patches_refuses_tiles(calibrated: Sets, tmp_path: Path) -> None:
    checkpoint, weights = calibrated("internvl")
    run("export", "--checkpoint", checkpoint, "--weights", weights, "--format", "awq", "--output", tmp_path / "bundle")
    with pytest.raises(InputError, match="pictures of internvl are prepared by 'tiles'"):
        Session.load(tmp_path / "bundle", engine="triton")
    with pytest.raises(InputError, match="draft is for smart resize, and its pictures are prepared by 'tiles'"):
        Session.load(tmp_path / "bundle", draft=True)
    checkpoint, weights = calibrated("qwen3_5")
    run("export", "--checkpoint", checkpoint, "--weights", weights, "--format", "awq", "--output", tmp_path / "delta")
    with pytest.raises(InputError, match="the engine triton has no linear attention"):
        Session.load(tmp_path / "delta", engine="triton")


def check_tensors(name: str, checkpoint: Path, weights: Path, bundle: Path) -> None:
    """Every tensor of a packed bundle is the weight set's or the checkpoint's, and readers know which are which."""
    modules, stored = FAMILIES[name].modules, WeightSet.load(weights)
    assert modules is not None
    dense = {modules.memory_name(key): value for key, value in dense_tensors(bundle).items()}
    base = {modules.memory_name(key): value.float() for key, value in tensors_of(checkpoint).items()}
    assert set(dense) == set(base)
    for key, value in dense.items():
        layer = key.removesuffix(".weight")
        if key.endswith(".weight") and layer in stored:
            exact = torch.from_numpy(stored.dequantized(layer))
            torch.testing.assert_close(value, exact, atol=1e-3 * float(exact.abs().max()), rtol=0)  # float16 scales
        elif key in stored.overrides:
            torch.testing.assert_close(value, torch.from_numpy(stored.override(key)))
        else:
            assert torch.equal(value, base[key])
    model = HubCheckpoint.open(checkpoint).load_model(torch.float32)
    linears = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantization = json.loads((bundle / "config.json").read_text())["quantization_config"]
    for prefix in ("", "model."):  # readers disagree on whether names begin with it
        found = {path for path in linears if not left_out(quantization, path.removeprefix(prefix))}
        assert found == set(stored.names)


def left_out(quantization: dict[str, Any], name: str) -> bool:
    """Whether a reader that goes by this configuration leaves a layer as it is."""
    if quantization["quant_method"] == "gptq":
        if name.rpartition(".")[2] == "lm_head":
            return not quantization["lm_head"]
        return any(pattern.startswith("-:") and re.match(pattern[2:], name) for pattern in quantization["dynamic"])
    if quantization["quant_method"] == "awq":
        return any(re.match(rf"{re.escape(part)}(\.|$)", name) for part in quantization["modules_to_not_convert"])
    return any(re.match(entry.removeprefix("re:"), name) for entry in quantization["ignore"])
