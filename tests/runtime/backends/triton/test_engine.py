"""The engine "triton" on bundles, on the CPU, against transformers with the dequantized weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgetune.cli import cli
from edgetune_core.weightset import WeightSet
from edgetune_export.check.answers import Answers
from edgetune_export.check.reference import Sample, generated_cases
from edgetune_export.checkpoint import open_checkpoint
from edgetune_runtime import Session
from edgetune_runtime.backends import GreedyBackend, load_backend
from edgetune_runtime.backends.triton.backend import TorchBackend
from edgetune_runtime.backends.triton.vision import load_vision
from edgetune_runtime.backends.triton.weights import PackedCheckpoint
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.decode import Prompt, greedy, prefill, step
from edgetune_runtime.errors import BundleError, InputError, MissingDependency
from edgetune_runtime.images.smart import ImageSpec, preprocess
from edgetune_runtime.quant.blocks import BlockFormat
from reference import apply_weights, greedy_sample, load_model
from weight_sets import build_weight_set

G64 = BlockFormat(4, 64, symmetric=True)


def export(checkpoint: Path, weights: Path, output: Path, layout: str, *more: str) -> Path:
    """Write a bundle as a user does."""
    options = ["--weights", str(weights), "--format", layout, "--output", str(output), *more]
    cli.main(["export", "--checkpoint", str(checkpoint), *options], standalone_mode=False)
    return output


def reference(checkpoint: Path, weights: Path) -> list[Sample]:
    """What transformers answers with the set's values in the place of the checkpoint's."""
    opened, model = open_checkpoint(checkpoint), load_model(checkpoint)
    apply_weights(model, WeightSet.load(weights))
    return [greedy_sample(model, case, opened.tokens) for case in generated_cases(opened)]


def assert_computes(backend: TorchBackend, checkpoint: Path, sample: Sample) -> None:
    """Features, logits at every step and greedy tokens are the reference's."""
    opened = open_checkpoint(checkpoint)
    image = backend.encode_images(opened.spec.encoder_arrays(sample.case.raw))
    for actual, expected in zip((image.embeddings, *image.deepstack), sample.features, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    answers = Answers(opened)
    prompt = answers.prompt(sample.case, image)
    ours = answers.go_on(backend, sample.case, (image.embeddings, *image.deepstack), sample.tokens)
    np.testing.assert_allclose(ours.logits, sample.logits, atol=1e-4 * max(1, np.abs(sample.logits).max()))
    first = int(prefill(backend, prompt, room=len(sample.tokens)).argmax())
    rest = backend.greedy(first, prompt.next_position, count=len(sample.tokens) - 1, stop=opened.tokens["eos"])
    assert [first, *rest] == sample.tokens


@pytest.mark.parametrize("layout", ["gptq", "awq", "compressed-tensors"])
def test_qwen3_vl_computes_what_transformers_computes(
    layout: str, qwen3_vl: Path, weight_set: Path, tmp_path: Path
) -> None:
    bundle = Bundle.load(export(qwen3_vl, weight_set, tmp_path / "bundle", layout))
    backend = TorchBackend.load(bundle, device="cpu", threads=None)
    for sample in reference(qwen3_vl, weight_set):
        assert_computes(backend, qwen3_vl, sample)


def test_qwen2_5_vl_of_mixed_widths_computes_what_transformers_computes(qwen2_5_vl: Path, tmp_path: Path) -> None:
    def choose(name: str) -> BlockFormat:
        if name.endswith("down_proj"):
            return BlockFormat(8, 128, symmetric=False)
        return BlockFormat(3, 32, symmetric=False) if ".layers.1." in name else G64

    weights = build_weight_set(qwen2_5_vl, tmp_path / "set", choose=choose)
    bundle = Bundle.load(export(qwen2_5_vl, weights, tmp_path / "bundle", "gptq"))
    backend = TorchBackend.load(bundle, device="cpu", threads=1)
    for sample in reference(qwen2_5_vl, weights):
        assert_computes(backend, qwen2_5_vl, sample)


def test_a_tower_makes_the_same_of_a_pictures_own_bytes(qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(export(qwen3_vl, weight_set, tmp_path / "bundle", "gptq"))
    with PackedCheckpoint(bundle) as checkpoint:
        tower = load_vision(bundle, checkpoint, torch.device("cpu"), torch.float32)
    spec = bundle.spec
    assert isinstance(spec, ImageSpec)
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    prepared = preprocess(Image.fromarray(rgb), spec)
    size = prepared.geometry.resized_width, prepared.geometry.resized_height
    resized = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling(spec.resample)))
    patch, merge = spec.patch_size, spec.merge_size
    groups = resized.reshape(size[1] // spec.factor, merge, patch, size[0] // spec.factor, merge, patch, 3)
    own = torch.from_numpy(groups.transpose(0, 3, 1, 4, 2, 5, 6).reshape(len(prepared.pixel_values), -1).copy())
    grids = torch.from_numpy(prepared.grid_thw)
    told = tower.encode(torch.from_numpy(prepared.pixel_values), grids).clone()
    assert torch.equal(tower.encode(own, grids), told)


@pytest.fixture(scope="module")
def gptq(qwen3_vl: Path, weight_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPTQ bundle whose graphs compute in float32, so that the lean runtime's answers can be the same."""
    exact = ("--accuracy-level", "0", "--vision-precision", "fp32")
    return export(qwen3_vl, weight_set, tmp_path_factory.mktemp("engine") / "gptq", "gptq", *exact)


def test_a_session_answers_as_the_lean_runtime_does(gptq: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    ours, lean = (Session.load(gptq, engine=engine) for engine in ("triton", None))
    question = "What colour is the cup?"
    assert ours.ask(picture, question, max_new_tokens=12) == lean.ask(picture, question, max_new_tokens=12) != ""


def test_greedy_ends_at_a_stop_token_and_goes_on_from_there(gptq: Path) -> None:
    backend = TorchBackend.load(Bundle.load(gptq), device="cpu", threads=None)
    ids, places = np.arange(20, 26), np.tile(np.arange(6), (3, 1))

    def start() -> int:
        backend.reserve(80)
        return int(backend.forward(backend.embed(ids), places).argmax())

    first = start()
    whole = backend.greedy(first, 6, count=40, stop=())
    assert len(whole) == 40
    stop = next(token for place, token in enumerate(whole) if place > 20 and token not in whole[:place])
    cut = whole.index(stop) + 1
    assert start() == first
    assert backend.greedy(first, 6, count=40, stop={stop}) == whole[:cut]
    assert backend.greedy(stop, 6 + cut, count=40 - cut, stop=()) == whole[cut:]


def test_several_tokens_in_one_pass_tell_what_they_tell_one_by_one(gptq: Path) -> None:
    bundle = Bundle.load(gptq)
    backend = load_backend(bundle, engine="triton")
    ids, places = np.arange(20, 28), np.tile(np.arange(8), (3, 1))
    backend.reserve(8)
    singly = np.stack([backend.forward(backend.embed(ids[[n]]), places[:, [n]]).copy() for n in range(8)])
    backend.rewind(2)
    told = backend.forward_at(backend.embed(ids[2:]), places[:, 2:], at=[0, 3, 5])
    np.testing.assert_allclose(told, singly[[2, 5, 7]], atol=1e-4)
    assert bundle.grammar is not None and backend.length == 8
    backend.rewind(2)
    told = backend.answers_at(backend.embed(ids[2:]), places[:, 2:], at=[1])
    np.testing.assert_allclose(told, singly[[3]][:, bundle.grammar.tokens], atol=1e-4)
    backend.rewind(2)
    assert backend.forward_at(backend.embed(ids[2:]), places[:, 2:], at=[]).shape == (0, backend.shape.vocabulary)


def test_continuations_side_by_side_are_what_they_are_alone(gptq: Path) -> None:
    backend = load_backend(Bundle.load(gptq), engine="triton")
    trunk, lines = np.arange(20, 26), [np.arange(30, 33), np.arange(40, 44)]
    alone = []
    for line in lines:
        backend.reserve(20)
        backend.forward(backend.embed(trunk), np.tile(np.arange(6), (3, 1)))
        alone.append(backend.forward(backend.embed(line), np.tile(6 + np.arange(len(line)), (3, 1))).copy())
    backend.branch(6)
    positions = np.concatenate([6 + np.arange(len(line)) for line in lines])
    owners = np.repeat([0, 1], [len(line) for line in lines])
    embeddings, rows = backend.embed(np.concatenate(lines)), np.tile(positions, (3, 1))
    told = backend.branches_at(embeddings, rows, owners, at=[2, 6], answers=False)
    np.testing.assert_allclose(told, np.stack(alone), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_the_runtimes_loop_takes_the_tokens_that_the_engine_chooses(gptq: Path, count: int) -> None:
    backend = TorchBackend.load(Bundle.load(gptq), device="cpu", threads=None)
    assert isinstance(backend, GreedyBackend)
    assert not isinstance(load_backend(Bundle.load(gptq), threads=1), GreedyBackend)
    prompt = Prompt(np.arange(20, 26), np.tile(np.arange(6), (3, 1)), 6, image_token=-1, image=None)
    logits, expected = prefill(backend, prompt, room=count), []
    for place in range(count):
        expected.append(int(logits.argmax()))
        logits = step(backend, expected[-1], 6 + place)
    for stop in ({-1}, *({expected[place]} for place in (0, count // 2, count - 1))):
        end = next((place for place, token in enumerate(expected) if token in stop), count - 1)
        found = greedy(backend, prompt, stop=stop, max_new_tokens=count, max_length=1000)
        assert list(found) == expected[: end + 1]


def test_more_tokens_than_reserved_are_refused(gptq: Path) -> None:
    backend = TorchBackend.load(Bundle.load(gptq), device="cpu", threads=None)
    backend.reserve(4)
    with pytest.raises(InputError, match="1030 tokens in a cache of 4"):
        backend.greedy(20, 0, count=1030, stop=())


def test_a_bundle_without_a_checkpoint_is_refused(qwen3_vl_bundle: Path) -> None:
    with pytest.raises(InputError, match="the engine triton does not read format 'onnx'") as caught:
        Session.load(qwen3_vl_bundle, engine="triton")
    assert "gptq" in str(caught.value.hint)


def test_a_missing_tensor_is_named(gptq: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(gptq, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.language_model.layers.2.mlp.up_proj.scales"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleError, match=r"no tensor model.language_model.layers.2.mlp.up_proj.scales"):
        TorchBackend.load(Bundle.load(broken, verify=False), device="cpu", threads=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_named(gptq: Path, tmp_path: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    broken, name = shutil.copytree(gptq, tmp_path / "broken"), "model.language_model.layers.0.mlp.up_proj"
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{name}.scales"][0, 0] = value
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="not all scales are finite") as caught:
        TorchBackend.load(Bundle.load(broken, verify=False), device="cpu", threads=None)
    assert name in str(caught.value)


def test_a_rope_that_the_bundle_does_not_describe_is_refused(gptq: Path, tmp_path: Path) -> None:
    other = shutil.copytree(gptq, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_type"] = "yarn"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not support rope type 'yarn'"):
        TorchBackend.load(Bundle.load(other, verify=False), device="cpu", threads=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_refused(gptq: Path) -> None:
    with pytest.raises(MissingDependency, match="sees no CUDA device"):
        TorchBackend.load(Bundle.load(gptq), device="cuda", threads=None)
