"""The self-check reads answers as strictly as generating them would be, in memory that does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import build_qwen3_vl, copy_checkpoint
from edgetune.cli import cli
from edgetune_export.check.answers import Answers, choices, own_answers
from edgetune_export.check.exact import GraphDecoder, for_every_step, read_answer
from edgetune_export.check.reference import Case, Reference, generated_cases
from edgetune_export.checkpoint import open_checkpoint
from edgetune_runtime.backends import Backend, ImageFeatures
from edgetune_runtime.backends.onnx.engine import OnnxBackend
from edgetune_runtime.bundle import Bundle
from reference import greedy_sample, load_model

GRAPHS = {"vision": "vision_encoder", "embed": "embed_tokens", "decoder": "decoder_model_merged"}


def load(bundle: Path) -> Backend:
    """The engine of an onnx bundle."""
    paths = {role: bundle / "onnx" / f"{name}.onnx" for role, name in GRAPHS.items()}
    return OnnxBackend(vision=paths["vision"], embed=paths["embed"], decoder=paths["decoder"])


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_reading_an_answer_gives_what_generating_it_gives(name: str, request: pytest.FixtureRequest) -> None:
    """Features, logits at every step and choices of transformers' own loop with its cache."""
    folder = request.getfixturevalue(name)
    opened, model = open_checkpoint(folder), load_model(folder)
    expected = [greedy_sample(model, case, opened.tokens) for case in generated_cases(opened)]
    read = Reference(opened.streamed, opened).read([one.case for one in expected], [one.tokens for one in expected])
    for ours, theirs in zip(read, expected, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
        assert choices(ours) == theirs.tokens
        for feature, other in zip(ours.features, theirs.features, strict=True):
            np.testing.assert_allclose(feature, other, atol=1e-5)


def test_a_bundle_that_answers_otherwise_is_corrected_until_its_answer_is_the_models(
    qwen3_vl: Path, int4_bundle: Path
) -> None:
    """The model's greedy answer comes out, though it never generates; and logits of both along it."""
    opened, model = open_checkpoint(qwen3_vl), load_model(qwen3_vl)
    cases = generated_cases(opened)
    expected = [greedy_sample(model, case, opened.tokens).tokens for case in cases]
    answers, reference = Answers(opened), Reference(opened.streamed, opened)
    own = [answers.ask(load(int4_bundle), case) for case in cases]
    assert any(ours.tokens != theirs for ours, theirs in zip(own, expected, strict=True)), "nothing to correct"
    read = reference.read(cases, [one.tokens for one in own])
    ours, theirs = own_answers(answers, reference, lambda: load(int4_bundle), own, read, passes=40)
    assert [one.tokens for one in ours] == [one.tokens for one in theirs] == expected
    assert [choices(one) for one in theirs] == expected
    again = [answers.go_on(load(int4_bundle), one.case, one.features, one.tokens) for one in ours]
    for one, other in zip(ours, again, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
    ours, theirs = own_answers(answers, reference, lambda: load(int4_bundle), own, read, passes=1)
    assert ours == own
    assert theirs == read


def test_a_model_that_answers_with_the_image_token_is_checked(qwen2_5_vl: Path, tmp_path: Path) -> None:
    """Transformers would look for a picture in such an answer, were it read on."""
    opened = open_checkpoint(qwen2_5_vl)
    answer = greedy_sample(load_model(qwen2_5_vl), generated_cases(opened)[0], opened.tokens).tokens
    written, image = answer[2], opened.tokens["image"]
    assert len({*answer[:3]}) == 3
    folder = copy_checkpoint(qwen2_5_vl, tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][[written, image]] = tensors["lm_head.weight"][[image, written]]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    arguments = ["--checkpoint", str(folder), "--precision", "fp32", "--output", str(tmp_path / "bundle")]
    cli.main(["export", *arguments], standalone_mode=False)
    told = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["result"]["bundle"]["parity"]
    assert told["token_agreement"] == 1.0 and told["logits_max_abs_diff"] < 1e-4


@pytest.mark.parametrize("dialect", ["ort", "plain"])
def test_a_few_calls_give_the_logits_of_many(dialect: str, qwen3_vl: Path, tmp_path: Path) -> None:
    """The written graph read in three calls, and step by step by the runtime."""
    arguments = ["--checkpoint", str(qwen3_vl), "--precision", "fp32", "--dialect", dialect, "--check", "none"]
    cli.main(["export", *arguments, "--output", str(tmp_path / "bundle")], standalone_mode=False)
    opened = open_checkpoint(qwen3_vl)
    answers, backend = Answers(opened), load(tmp_path / "bundle")
    path = tmp_path / "bundle" / "onnx" / "decoder_model_merged.onnx"
    ir.save(for_every_step(ir.load(path)), path.with_name("every.onnx"))
    decoder = GraphDecoder(path.with_name("every.onnx"))

    def few(case: Case) -> None:
        sample = answers.ask(backend, case)
        for count in (1, 2, len(sample.tokens)):
            prompt = answers.prompt(case, ImageFeatures(sample.features[0], sample.features[1:]))
            logits, _ = read_answer(decoder, backend.embed, prompt, sample.tokens[:count])
            np.testing.assert_allclose(logits, sample.logits[:count], atol=2e-5)

    for case in generated_cases(opened):
        few(case)


@pytest.mark.parametrize("kind", ["full", "fast", "none"])
def test_what_was_checked_is_told(kind: str, qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    """In the manifest; without a check nothing else is."""
    arguments = ["--checkpoint", str(qwen3_vl), "--weights", str(weight_set), "--check", kind]
    cli.main(["export", *arguments, "--output", str(tmp_path / "bundle")], standalone_mode=False)
    told: dict[str, Any] = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["result"]["bundle"]["parity"]
    assert told["check"] == Bundle.load(tmp_path / "bundle").self_check == kind
    assert ("exact" in told, "drift" in told) == (kind != "none", kind != "none")


def peak(checkpoint: Path, output: Path) -> int:
    """Megabytes that an export of a checkpoint takes at most, in a process of its own."""
    script = (
        "import resource, sys; from edgetune.cli import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)"
    )
    words = ["export", "--checkpoint", str(checkpoint), "--check", "fast", "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_as_the_model_does(tmp_path: Path) -> None:
    """Eight layers more are 450 MB of float32: what of them is in memory at once is the export, a few bits a weight."""
    few, many = (
        build_qwen3_vl(tmp_path / str(layers), layers=layers, hidden=1536, dtype=torch.bfloat16) for layers in (5, 13)
    )
    grown = peak(many, tmp_path / "many") - peak(few, tmp_path / "few")
    assert grown < 250, f"{grown} MB more"
