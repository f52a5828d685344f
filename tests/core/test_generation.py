"""Greedy means greedy: penalties and bans in a checkpoint's generation_config.json change no answer of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import prepare
from edgetune_core.generation import copy_generation_config, forget_sampling, generate_greedily
from edgetune_core.torch_runner.model import TorchModel
from edgetune_runtime.bench.worker import predict
from edgetune_runtime.records import read_records
from edgetune_train.batch import Collator
from edgetune_train.score import GroundingScorer
from edgetune_train.vision import FeatureInputs
from train.conftest import write_records

SETTINGS = {
    "do_sample": True,
    "repetition_penalty": 1.05,
    "no_repeat_ngram_size": 1,
    "temperature": 0.7,
    "top_k": 1,
    "min_new_tokens": 3,
}
"""What published checkpoints ask for, and more."""


@pytest.fixture(scope="module")
def asking(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with generation settings of its own."""
    folder = tmp_path_factory.mktemp("asking") / "checkpoint"
    shutil.copytree(qwen3_vl, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SETTINGS))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "records")


def load(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def by_argmax(model: Any, ids: torch.Tensor, count: int, stop: int) -> list[int]:
    """The most likely token after the prompt, then after that, one forward pass each."""
    found: list[int] = []
    while len(found) < count and stop not in found:
        with torch.no_grad():
            logits = model(input_ids=torch.cat([ids, torch.tensor([found], dtype=torch.long)], dim=1)).logits
        found.append(int(logits[0, -1].argmax()))
    return found


def test_the_most_likely_token_is_taken_at_every_step(asking: Path) -> None:
    model, stop = load(asking), 0
    ids = torch.arange(1400)[None]  # whatever comes next has been there before
    expected = by_argmax(model, ids, 12, stop)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    output = generate_greedily(model, inputs, stop=[stop], pad=stop, max_new_tokens=12, output_logits=True)
    assert output.sequences[0, 1400:].tolist() == expected
    assert [int(step[0].argmax()) for step in output.logits] == expected
    own = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=[stop], pad_token_id=stop)
    assert own[0, 1400:].tolist() != expected, "settings that change nothing would prove nothing"
    assert model.generation_config.repetition_penalty == 1.05  # the model is left as it was
    forget_sampling(model, stop=[stop])
    own = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=stop)
    assert own[0, 1400:].tolist() == expected


def test_eval_and_run_answer_as_without_the_settings(asking: Path, qwen3_vl: Path, data: Path) -> None:
    records = read_records(data)
    raws = []
    for folder in (asking, qwen3_vl):
        model = TorchModel(folder, adapter=None, device="cpu")
        raws.append([predict(model, record, max_new_tokens=12).raw for record in records])
    assert raws[0] == raws[1]


def test_validation_in_training_answers_as_without_the_settings(asking: Path, qwen3_vl: Path, data: Path) -> None:
    texts = []
    for folder in (asking, qwen3_vl):
        base = HubCheckpoint.open(folder)
        samples = prepare(read_records(data), base.family, base.spec, base.tokenizer)
        model = base.load_model(torch.float32).eval()
        scorer = GroundingScorer(base, samples, Collator.of(base, FeatureInputs(model, base.spec, 0)), batch_size=4)
        texts.append(scorer.generate(model, scorer.samples))
    assert texts[0] == texts[1]


def test_it_is_exported_rounded_and_its_bundle_asks_for_nothing(asking: Path, tmp_path: Path) -> None:
    arguments = ["export", "--checkpoint", str(asking), "--precision", "int8", "--output", str(tmp_path / "int8")]
    cli.main(arguments, standalone_mode=False)
    written = json.loads((tmp_path / "int8" / "generation_config.json").read_text())
    assert not SETTINGS.keys() & written.keys() - {"do_sample"} and written["do_sample"] is False
    assert written["eos_token_id"] == json.loads((asking / "generation_config.json").read_text())["eos_token_id"]


def test_a_file_without_settings_is_copied_byte_for_byte(qwen3_vl: Path, tmp_path: Path) -> None:
    copy_generation_config(qwen3_vl / "generation_config.json", tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == (qwen3_vl / "generation_config.json").read_bytes()
