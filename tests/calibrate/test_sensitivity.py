"""Expected boxes against the answers they are read from, and drift against that of models quantized by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders import TINY_MODEL
from edgetune_calibrate.allocate import Unit
from edgetune_calibrate.batches import batch
from edgetune_calibrate.sensitivity import BoxMeter, drift, measure, stored_bytes
from edgetune_calibrate.solve import LinearGroup, SolveSettings, solve_group
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_core.coordinates import box_places, digit_tokens, expected_boxes
from edgetune_runtime.bench.metrics import iou
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.records import read_records


@pytest.fixture(scope="module")
def checkpoint() -> HubCheckpoint:
    return HubCheckpoint.open(TINY_MODEL)


@pytest.fixture(scope="module")
def samples(checkpoint: HubCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two records with boxes and one without, on noise."""
    folder = tmp_path_factory.mktemp("records")
    noise = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    lines: list[dict[str, Any]] = [
        {"image": "noise.png", "text": "the 2 clocks", "bbox": [12, 20, 130, 170]},
        {"image": "noise.png", "text": "the owl", "bbox": [0, 0, 256, 192]},
        {"image": "noise.png", "question": "how many clocks?", "answer": "12"},
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prepare(read_records(data), checkpoint.family, checkpoint.spec, checkpoint.tokenizer)


def test_boxes_are_found_and_read_back_from_certain_digits(checkpoint: HubCheckpoint, samples: list[Sample]) -> None:
    digits = digit_tokens(checkpoint.tokenizer)
    expected = [[[47, 104, 508, 885]], [[0, 0, 1000, 1000]], []]
    for sample, boxes in zip(samples, expected, strict=True):
        places = box_places(sample, checkpoint.tokenizer)
        assert len(places.digits) == len(boxes)
        if boxes:
            logits = torch.full((len(sample.answer_ids), 2048), -30.0)
            logits[range(len(sample.answer_ids)), sample.answer_ids] = 30.0
            read = expected_boxes(logits, places, digits)
            torch.testing.assert_close(read, torch.tensor(boxes, dtype=torch.float64), rtol=0, atol=1e-6)
            torch.testing.assert_close(places.sides.double(), read[:, 2:] - read[:, :2])


def test_an_uncertain_digit_moves_the_box_by_its_place(checkpoint: HubCheckpoint, samples: list[Sample]) -> None:
    digits, places = digit_tokens(checkpoint.tokenizer), box_places(samples[0], checkpoint.tokenizer)
    logits = torch.full((len(samples[0].answer_ids), 2048), -30.0)
    logits[range(len(samples[0].answer_ids)), samples[0].answer_ids] = 30.0
    tens = places.digits[0][0][0]  # the 4 of left = 47
    logits[tens, digits[6]] = 30.0
    read = expected_boxes(logits, places, digits)
    torch.testing.assert_close(read[0, 0].item(), 57.0)


def test_drift_is_one_minus_iou_for_small_shifts() -> None:
    box = torch.tensor([[100.0, 200, 500, 900]], dtype=torch.float64)
    sides = torch.tensor([[400.0, 700]])
    for shift in ([1.0, 0, 0, 0], [-1, 2, 1, -2], [0, 0, 0.5, 3]):
        moved = box + torch.tensor([shift], dtype=torch.float64)
        expected = 1 - iou(moved.numpy(), box.numpy())[0, 0]
        assert drift(moved, box, sides).item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_stored_bytes_are_those_of_the_packed_weight(bits: int, symmetric: bool) -> None:
    weight = torch.randn(24, 256)
    settings = SolveSettings("rtn", bits, 64, symmetric)
    [solved] = solve_group(LinearGroup({"a": weight}, torch.eye(256), 1), settings).values()
    zeros = solved.packed_zero_points()
    packed = (
        solved.packed_codes().nbytes + solved.scales.astype(np.float16).nbytes + (0 if zeros is None else zeros.nbytes)
    )
    assert stored_bytes((24, 256), settings.format) == packed


def test_a_units_error_is_that_of_the_model_with_only_it_quantized(
    checkpoint: HubCheckpoint, samples: list[Sample]
) -> None:
    model = checkpoint.load_model(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [batch(sample, checkpoint, torch.float32) for sample in samples]
    places = [box_places(sample, checkpoint.tokenizer) for sample in samples]
    digits, answers = digit_tokens(checkpoint.tokenizer), [len(sample.answer_ids) for sample in samples]
    ways = [SolveSettings("rtn", 3, 64), SolveSettings("rtn", 8, 32)]

    def measured(head: SolveSettings | None, finished: Sequence[Unit] = ()) -> list[Unit]:
        def candidates(columns: int) -> list[SolveSettings]:
            assert columns in (384, 768)
            return ways

        meter = BoxMeter(model, batches, places, answers, digits)
        return list(measure(model, checkpoint.modules, batches, meter, candidates, head=head, finished=finished))

    units = measured(ways[0])
    assert len(units) == 6 * 4 + 1
    assert units[-1].names == ("lm_head",)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def boxes(one: Any) -> torch.Tensor:
        found = []
        for sample, inputs, place in zip(samples, batches, places, strict=True):
            with torch.no_grad():
                logits = one(**inputs).logits[0, len(sample.prompt_ids) - 1 : -1]
            found += [expected_boxes(logits, place, digits)] if place.digits else []
        return torch.cat(found)

    sides = torch.cat([place.sides for place in places])
    for index in (0, 11, 24):
        for choice in units[index].choices:
            bits, group_size = choice.format.bits, choice.format.block
            quantized = copy.deepcopy(model)
            size = 0
            for name in units[index].names:
                weight = before[f"{name}.weight"]
                solve = SolveSettings("rtn", bits, group_size)
                [solved] = solve_group(LinearGroup({name: weight}, torch.eye(weight.shape[1]), 1), solve).values()
                quantized.get_submodule(name).weight = torch.nn.Parameter(torch.from_numpy(solved.dequantize()))
                size += stored_bytes((len(weight), weight.shape[1]), BlockFormat(bits, group_size, False))
            moved = drift(boxes(quantized), boxes(model), sides).mean().item() ** 2
            assert choice.error == pytest.approx(moved, rel=1e-3)
            assert choice.size == size
    assert [one.format for one in units[-1].choices] == [ways[0].format]
    for unit in units[:-1]:
        assert [one.format for one in unit.choices] == [way.format for way in ways]
        assert unit.choices[0].error > 10 * unit.choices[1].error

    again = measured(None, units[:6])  # a run that was interrupted in its second block
    assert again[:4] == units[:4]
    for one, other in zip(again, units[:-1], strict=True):
        assert one.names == other.names
        assert [choice.error for choice in one.choices] == pytest.approx([choice.error for choice in other.choices])


def test_records_without_boxes_are_refused(checkpoint: HubCheckpoint, samples: list[Sample]) -> None:
    question = samples[2]
    places = box_places(question, checkpoint.tokenizer)
    inputs = batch(question, checkpoint, torch.float32)
    with pytest.raises(InputError, match="no calibration record has a box"):
        BoxMeter(checkpoint.load_model(torch.float32), [inputs], [places], [2], digit_tokens(checkpoint.tokenizer))
