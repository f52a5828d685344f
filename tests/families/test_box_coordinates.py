"""Coordinates in the tokens of every family's own tokenizer, and the objectives that live on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import prepare
from edgetune_core.coordinates import locate
from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.geometry import frame_size
from edgetune_runtime.records import read_records
from families.checkpoints import BUILDERS
from families.conftest import Build

JOINED = ("smolvlm", "idefics3")  # their models take all images of a batch as one array
QUICK = ["--precision", "fp32", "--rank", "2", "--json"]


@pytest.mark.parametrize("name", [*BUILDERS, "qwen2_5_vl", "qwen3_vl"])
def test_the_tokens_of_an_answer_say_where_its_numbers_are(name: str, tiny: Build, data: Path) -> None:
    base = HubCheckpoint.open(tiny(name))
    records = [record for record in read_records(data) if record.boxes is not None]
    for record, sample in zip(records, prepare(records, base.family, base.spec, base.tokenizer), strict=True):
        ids, boxes = locate(record, sample.geometry, base.family, base.tokenizer)
        assert [*ids, sample.answer_ids[-1]] == sample.answer_ids
        assert record.boxes is not None
        size = frame_size(sample.geometry, base.family.box_format)
        for box, right in zip(
            boxes, grounding.to_model(record.boxes, sample.geometry, base.family.box_format), strict=True
        ):
            for number, edge, coordinate in zip(box, size, right, strict=True):
                tokens = ids[number.start : number.start + len(number.steps.chosen) - 1]
                written = base.tokenizer.decode(tokens, keep_control=True).strip()
                assert float(written) / edge == pytest.approx(number.value)
                assert float(written) == pytest.approx(coordinate, abs=0.501 if edge > 1 else 0.00501)


def run(verb: str, checkpoint: Path, data: Path, output: Path, *options: str) -> dict[str, Any]:
    paths = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output)]
    result = CliRunner().invoke(cli, [verb, *paths, *QUICK, *options])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_decimals_are_trained_on(tiny: Build, data: Path, tmp_path: Path) -> None:
    run(
        "train",
        tiny("llava"),
        data,
        tmp_path / "adapter",
        "--box-loss",
        "1",
        "--epochs",
        "6",
        "--learning-rate",
        "0.01",
    )
    logged = [json.loads(line) for line in (tmp_path / "adapter" / "logs" / "log.jsonl").read_text().splitlines()]
    distances = [entry["box_l1"] for entry in logged if "box_l1" in entry]
    assert 0 <= distances[-1] < distances[0] <= 4


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in JOINED])
def test_answers_are_rewarded(name: str, tiny: Build, data: Path, tmp_path: Path) -> None:
    options = ["--batch-size", "2", "--generations", "2", "--max-tokens", "2", "--limit", "4"]
    assert run("grpo", tiny(name), data, tmp_path / "adapter", *options)["result"]["steps"] == 2


@pytest.mark.parametrize("name", JOINED)
def test_images_that_cannot_be_divided_are_refused(name: str, tiny: Build, data: Path, tmp_path: Path) -> None:
    paths = ["--checkpoint", str(tiny(name)), "--data", str(data), "--output", str(tmp_path / "adapter")]
    result = CliRunner().invoke(cli, ["grpo", *paths, "--precision", "fp32"])
    assert result.exit_code == 2
    assert "cannot divide the images of" in result.stderr
