"""Compiled language blocks: losses and gradients of those that are not, one graph for all, validation as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.records import read_entries
from edgetune_train.adapt import adapted_model
from edgetune_train.arguments import training_arguments
from edgetune_train.batch import Collator
from edgetune_train.compiled import compile_blocks
from edgetune_train.objective import answer_loss
from edgetune_train.settings import TrainSettings
from train.conftest import write_records

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a compiler"
)


@pytest.fixture(scope="module")
def base(qwen3_vl: Path) -> HubCheckpoint:
    return HubCheckpoint.open(qwen3_vl)


@pytest.fixture(scope="module")
def samples(base: HubCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    entries = read_entries(write_records(tmp_path_factory.mktemp("compiled") / "data"))
    return prepare(entries, base.family, base.spec, base.tokenizer)


@NEEDS_COMPILER
def test_losses_and_gradients_of_packs_of_any_length_come_from_one_graph(
    base: HubCheckpoint, samples: list[Sample], tmp_path: Path
) -> None:
    torch._dynamo.reset()
    counters.clear()
    found: list[list[torch.Tensor]] = []
    for compiled in (False, True):
        settings = TrainSettings(pack=512, precision="fp32", compile=compiled, cache_mb=0)
        torch.manual_seed(0)
        adapted = adapted_model(base, settings, training_arguments(settings, tmp_path, validate=False), start=None)
        model: Any = adapted.model.train()
        collate = Collator.of(base, adapted.images, segments=adapted.segments)
        told = []
        for rows in (samples[:2], samples[2:5], samples[3:5]):
            batch = collate([tuple(rows)])
            logits = model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits
            loss = answer_loss(logits, batch, 10)
            loss.backward()
            told.append(loss.detach())
        with torch.no_grad():
            told.append(model.eval()(**collate.prompts(samples[:1])).logits)
        found.append([*told, *(p.grad for p in model.parameters() if p.requires_grad)])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-8)
    # Two: the first block's input needs no gradient.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_what_is_missing_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingDependency, match="--compile: there is no g"):
        compile_blocks([torch.nn.Linear(2, 2)])


def test_weights_that_are_divided_are_refused(
    base: HubCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    settings = TrainSettings(compile=True, precision="fp32")
    arguments = training_arguments(TrainSettings(precision="fp32"), tmp_path, validate=False)
    with pytest.raises(InputError, match="--compile cannot be combined"):
        adapted_model(base, settings, arguments, start=None)
