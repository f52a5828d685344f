"""The box term against brute force over all numbers, numerical differentiation, and GIoU computed otherwise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from builders import TINY_MODEL
from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_core.coordinates import steps_of
from edgetune_runtime.records import read_records
from edgetune_train.box_loss import BoxAware, BoxLocator, expected_boxes, giou
from edgetune_train.objective import answer_loss
from train.conftest import RECORDS, write_records
from train.test_training import DESCENT, assert_moved_alike

BASE = HubCheckpoint.open(TINY_MODEL)
VOCABULARY = 2048
DIGITS = {sign: BASE.tokenizer.id_of(sign) for sign in "0123456789"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    path = write_records(tmp_path_factory.mktemp("box_loss") / "data")
    return prepare(read_records(path), BASE.family, BASE.spec, BASE.tokenizer)


def located(samples: list[Sample], *, packed: bool = False) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
    """Return where the boxes of all samples are, the positions with logits, and the batch's rows."""
    lengths = [len(sample.ids) for sample in samples]
    begins = [0, *itertools.accumulate(lengths)][: len(lengths)]
    starts = [(0, begin) if packed else (row, 0) for row, begin in enumerate(begins)]
    kept = torch.arange(5, sum(lengths) if packed else max(lengths))  # some prompt tokens have no logits
    return BoxLocator(BASE)(samples, starts, kept), kept, 1 if packed else len(samples)


def logits_of(number: str, samples: list[Sample], text: str, kept: torch.Tensor) -> torch.Tensor:
    """Return logits of the first sample's row that, after each beginning of `text`, go on as in `number`."""
    logits = torch.zeros(1, len(kept), VOCABULARY)
    answer = BASE.tokenizer.decode(samples[0].answer_ids)
    at = len(samples[0].prompt_ids) + len(BASE.tokenizer.encode(answer[: answer.index(text)])) - 1 - 5
    for step in range(len(text) + 1):
        if number.startswith(text[:step]):
            sign = number[step : step + 1]
            token = DIGITS[sign] if sign else BASE.tokenizer.encode(",")[0]
            assert token is not None
            logits[0, at + step, token] = 60.0
    return logits


@pytest.mark.parametrize(
    ("written", "expected"),
    [("62", 62), ("63", 63), ("70", 70), ("6", 6), ("628", 628), ("640", 64), ("100", 100), ("59", 59)],
)
def test_a_model_that_is_sure_of_a_number_is_expected_there(samples: list[Sample], written: str, expected: int) -> None:
    """The right x1 is 62. What comes after the first wrong digit is taken as the nearest: 64 for 640."""
    boxes, kept, _ = located(samples[:1])
    found = expected_boxes(logits_of(written, samples, "62", kept), boxes)
    assert boxes["values"][0, 0] == pytest.approx(0.062)
    assert found[0, 0] * 1000 == pytest.approx(expected, abs=1e-3)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 8))
def test_expected_boxes_are_means_over_all_numbers(seed: int, scale: float) -> None:
    """Walk through every number of the frame digit by digit: a deviating digit goes to the nearest it still allows."""
    generator = np.random.default_rng(seed)
    target = int(generator.integers(0, 1001))
    text = str(target)
    steps = len(text) + 1
    probabilities = []
    scores = generator.normal(size=(steps, 11)) * scale  # ten digits and the end
    everything = [str(number) for number in range(1001)]
    expectation, reached = 0.0, 1.0
    for row in range(steps):
        options = {
            sign: [int(n) for n in everything if (n == text[:row] if sign == "" else n.startswith(text[:row] + sign))]
            for sign in [*"0123456789", ""]
        }
        weights = {s: np.exp(scores[row, i]) for i, s in enumerate(options) if options[s] and (row or s)}
        total = sum(weights.values())
        right = text[row : row + 1]
        for sign, weight in weights.items():
            if sign != right:
                nearest = min(options[sign], key=lambda n: (abs(n - target), n))
                expectation += reached * weight / total * nearest
        reached *= weights[right] / total
        probabilities.append(weights[right] / total)
    expectation += reached * target
    table = steps_of(target, 1000, 0)
    tokens = torch.tensor([*DIGITS.values(), 0, 1])
    boxes = {
        "rows": torch.zeros(1, dtype=torch.int64),
        "columns": torch.arange(steps).expand(1, 4, -1),
        "tokens": tokens.expand(1, 4, steps, -1),
        "drift": torch.from_numpy(table.drift).float().expand(1, 4, -1, -1),
        "chosen": torch.from_numpy(table.chosen).expand(1, 4, -1),
        "values": torch.full((1, 4), target / 1000),
    }
    logits = torch.zeros(1, steps, VOCABULARY)
    logits[0, :, tokens[:10]] = torch.from_numpy(scores[:, :10]).float()
    logits[0, :, 1] = torch.from_numpy(scores[:, 10]).float()
    found = expected_boxes(logits, boxes)
    assert found[0].tolist() == pytest.approx([expectation / 1000] * 4, abs=2e-5)
    assert 0 <= expectation <= 1000


def test_padding_and_packing_find_the_same_boxes(samples: list[Sample]) -> None:
    generator = torch.Generator().manual_seed(0)
    padded, kept, rows = located(samples)
    packed, packed_kept, _ = located(samples, packed=True)
    logits = torch.randn(rows, len(kept), VOCABULARY, generator=generator)
    flat = torch.zeros(1, len(packed_kept), VOCABULARY)
    start = 0
    for row, sample in enumerate(samples):
        for position in range(len(sample.ids)):
            if position >= 5 and start + position >= 5:
                flat[0, start + position - 5] = logits[row, position - 5]
        start += len(sample.ids)
    assert len(padded["rows"]) == 4  # one record has two boxes, three records have none
    torch.testing.assert_close(expected_boxes(flat, packed), expected_boxes(logits, padded))
    torch.testing.assert_close(packed["values"], padded["values"])


def test_the_gradient_is_the_numerical_one(samples: list[Sample]) -> None:
    boxes, kept, rows = located(samples)
    logits = torch.randn(rows, len(kept), VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = torch.unique(boxes["tokens"])
    small = {**boxes, "tokens": torch.searchsorted(used, boxes["tokens"])}
    small["drift"], small["values"] = boxes["drift"].double(), boxes["values"].double()

    def cost(some: torch.Tensor) -> torch.Tensor:
        found = expected_boxes(some, small)
        return (found - small["values"]).abs().sum() + (1 - giou(found, small["values"])).sum()

    some = logits[:, :, used].requires_grad_()
    cost(some).backward()
    assert some.grad is not None
    moved = [*some.grad.abs().flatten().topk(40).indices.tolist(), 0, 1, 2]
    for index in moved:
        step = torch.zeros(some.numel(), dtype=torch.float64)
        step[index] = 1e-3
        step = step.view_as(some)
        with torch.no_grad():
            slope = (cost(some + step) - cost(some - step)) / 2e-3
        assert float(some.grad.flatten()[index]) == pytest.approx(float(slope), rel=2e-2, abs=2e-5)


def giou_by_pixels(first: list[int], second: list[int]) -> float:
    """Return GIoU by counting the unit squares of a grid: intersection, union and hull as sets."""

    def squares(box: list[int]) -> set[tuple[int, int]]:
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    a, b = squares(first), squares(second)
    hull = squares(
        [min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])]
    )
    return len(a & b) / len(a | b) - (len(hull) - len(a | b)) / len(hull)


@st.composite
def grid_boxes(draw: st.DrawFn) -> list[int]:
    x1, x2 = sorted(draw(st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True)))
    return [x1, y1, x2, y2]


@given(first=st.lists(grid_boxes(), min_size=1, max_size=5), data=st.data())
def test_giou_counts_squares(first: list[list[int]], data: st.DataObject) -> None:
    second = data.draw(st.lists(grid_boxes(), min_size=len(first), max_size=len(first)))
    expected = [giou_by_pixels(a, b) for a, b in zip(first, second, strict=True)]
    found = giou(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected)
    scaled = giou(
        torch.tensor(first) * torch.tensor([3.0, 7.0] * 2), torch.tensor(second) * torch.tensor([3.0, 7.0] * 2)
    )
    assert scaled.tolist() == pytest.approx(expected, abs=1e-5)  # frames that stretch an image change nothing


def test_an_inverted_box_still_has_a_gradient_to_the_right_one() -> None:
    box = torch.tensor([[0.9, 0.9, 0.8, 0.8]], requires_grad=True)
    target = torch.tensor([[0.1, 0.1, 0.4, 0.4]])
    value = giou(box, target)
    assert -1 <= value.item() < 0
    value.sum().backward()
    assert box.grad is not None
    assert torch.isfinite(box.grad).all()
    assert float(box.grad.abs().max()) > 0


def test_the_term_is_added_to_the_cross_entropy_and_logged(samples: list[Sample]) -> None:
    boxes, kept, rows = located(samples)
    logits = torch.randn(rows, len(kept), VOCABULARY, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.full((rows, len(kept)), -100)
    labels[:, -3:] = 7
    batch: dict[str, Any] = {"labels": labels, "box_labels": boxes}
    objective = BoxAware(0.5)
    plain, whole = answer_loss(logits, batch, 30), objective(logits, batch, 30)
    found = expected_boxes(logits, boxes)
    distance = (found - boxes["values"]).abs().sum()
    miss = (1 - giou(found, boxes["values"])).sum()
    assert (whole - plain).item() == pytest.approx((0.5 * (5 * distance + 2 * miss) / 30).item(), rel=1e-4)
    figures = objective.figures()
    assert figures["box_l1"] == pytest.approx(distance.item() / 4)
    assert figures["box_giou"] == pytest.approx(1 - miss.item() / 4)
    assert objective.figures() == {}
    assert objective(logits.detach(), batch, 30).item() == plain.item()  # validation has no box term


def test_samples_without_boxes_have_no_term(samples: list[Sample]) -> None:
    others = [samples[2], samples[3]]  # an absent object and a question
    boxes, kept, rows = located(others)
    logits = torch.randn(rows, len(kept), VOCABULARY).requires_grad_()
    batch = {"labels": torch.full((rows, len(kept)), 3), "box_labels": boxes}
    objective = BoxAware(1.0)
    assert objective(logits, batch, 5).item() == answer_loss(logits, batch, 5).item()
    assert objective.figures() == {}


@pytest.mark.parametrize("options", [[], ["--pack", "700"], ["--accumulate", "2", "--batch-size", "3"]])
def test_a_run_brings_boxes_nearer(qwen3_vl: Path, data: Path, tmp_path: Path, options: list[str]) -> None:
    """Padded, packed and accumulated, with questions and absent objects among the records."""
    output = tmp_path / "adapter"
    arguments = ["train", "--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(output), "--json"]
    quick = ["--epochs", "12", "--batch-size", "6", "--rank", "4", "--precision", "fp32", "--learning-rate", "0.01"]
    logs = ["--trainer-arg", "logging_steps=1", "--box-loss", "2"]
    result = CliRunner().invoke(cli, [*arguments, *quick, *logs, *options])
    assert result.exit_code == 0, result.output
    logged = [json.loads(line) for line in (output / "logs" / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in logged if "box_l1" in entry]
    assert len(steps) == 12
    assert steps[-1]["box_l1"] < 0.5 * steps[0]["box_l1"]
    assert steps[-1]["box_giou"] > steps[0]["box_giou"]


def test_one_step_is_one_step_however_it_is_divided(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    for name, options in {"one": ["6", "1"], "parts": ["2", "3"]}.items():
        arguments = ["train", "--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(tmp_path / name)]
        size = ["--batch-size", options[0], "--accumulate", options[1], "--trainer-arg", "warmup_steps=0"]
        quick = ["--epochs", "2", "--rank", "4", "--precision", "fp32", "--box-loss", "3", *DESCENT]
        assert CliRunner().invoke(cli, [*arguments, *quick, *size]).exit_code == 0
    assert_moved_alike(tmp_path / "one", tmp_path / "parts")


def test_records_without_any_box_are_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "data", records=RECORDS[2:4])
    arguments = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(tmp_path / "adapter")]
    result = CliRunner().invoke(cli, ["train", *arguments, "--box-loss", "1", "--precision", "fp32"])
    assert result.exit_code == 2
    assert "no record is answered with boxes" in result.stderr
