"""Coordinates in the tokens of every family's own tokenizer, and the objectives that live on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import prepare
from edgetune_core.coordinates import locate
from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.geometry import frame_size
from edgetune_runtime.records import read_records
from edgetune_train.batch import Collator
from edgetune_train.prompts import SamplePrompts
from edgetune_train.vision import PixelInputs
from families.checkpoints import BUILDERS
from families.conftest import Build, picture
from families.reference import load_processor

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


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "lfm2_vl"])
def test_answers_are_rewarded(name: str, tiny: Build, data: Path, tmp_path: Path) -> None:
    options = ["--batch-size", "2", "--generations", "2", "--max-tokens", "2", "--limit", "4"]
    assert run("grpo", tiny(name), data, tmp_path / "adapter", *options)["result"]["steps"] == 2


def test_tiles_of_several_sizes_are_not_divided(tiny: Build, data: Path, tmp_path: Path) -> None:
    paths = ["--checkpoint", str(tiny("lfm2_vl")), "--data", str(data), "--output", str(tmp_path / "adapter")]
    result = CliRunner().invoke(cli, ["grpo", *paths, "--batch-size", "2", "--generations", "2"])
    assert result.exit_code == 2
    assert "TRL cannot divide the images of LFM2-VL among answers" in result.output


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_tiles_of_several_images_are_divided_as_transformers_lays_them_out(
    name: str, tiny: Build, tmp_path: Path
) -> None:
    """A model takes all tiles as one row; TRL, which divides rows, gets one an image, as the processor makes them."""
    sizes = [(160, 40), (90, 90), (40, 160)]
    lines = [{"image": f"{width}.png", "text": "the cup", "bbox": [1, 2, 30, 35]} for width, _ in sizes]
    for width, height in sizes:
        picture(width, height).save(tmp_path / f"{width}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = HubCheckpoint.open(tiny(name))
    samples = prepare(read_records(tmp_path / "data.jsonl"), base.family, base.spec, base.tokenizer)
    prompts = SamplePrompts(base, samples, Collator.of(base, PixelInputs(base.spec)))
    found = prompts(images=[[0], [1], [2]])["pixel_values"]
    images = [[picture(*size)] for size in sizes]
    made = load_processor(base.folder).image_processor(images, return_tensors="pt")
    torch.testing.assert_close(found, made["pixel_values"], atol=0, rtol=0)
    empty = (found == 0).flatten(2).all(dim=2).sum(dim=1).tolist()
    assert sorted(empty)[0] == 0 < max(empty)  # of different numbers of tiles
