"""Which records a model is calibrated on: coverage, reproducibility, and none that it is evaluated on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetune_calibrate.batches import THREADS, batch, batches, roles, token_weights
from edgetune_calibrate.samples import AXES, calibration_set, choose, strata
from edgetune_calibrate.settings import ROLES
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import upright_size
from edgetune_runtime.records import read_records
from train.conftest import RECORDS, write_records
from train.reference import conversation

AXIS = st.lists(st.sampled_from("abcd"), min_size=24, max_size=24)


@given(
    axes=st.lists(AXIS, min_size=1, max_size=4),
    count=st.integers(min_value=1, max_value=24),
    seed=st.integers(min_value=0, max_value=9),
)
def test_every_value_has_a_sample_where_there_is_room(axes: list[list[str]], count: int, seed: int) -> None:
    values = {str(number): axis for number, axis in enumerate(axes)}
    chosen = choose(values, count, seed)
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen) == choose(values, count, seed)
    assert set(chosen) <= set(range(24))
    if count >= sum(len(set(axis)) for axis in axes):
        assert all({axis[index] for index in chosen} == set(axis) for axis in axes)


def test_rare_values_get_more_than_their_part_and_less_than_equal_parts() -> None:
    axis = ["common"] * 900 + ["rare"] * 100
    chosen = Counter(axis[index] for index in choose({"size": axis}, 100, 0))
    assert chosen == {"common": 75, "rare": 25}  # 3 to 1: the square roots of 9 to 1


def test_labels_that_all_differ_do_not_hide_the_other_axes() -> None:
    sizes = ["small"] * 5 + ["large"] * 495
    values = {"label": [str(number) for number in range(500)], "size": sizes}
    chosen = Counter(sizes[index] for index in choose(values, 40, 0))
    assert chosen["small"] >= 3


def test_one_picture_is_not_asked_for_again_while_others_wait() -> None:
    images = ["one"] * 50 + [f"other {number}" for number in range(10)]
    chosen = choose({"image": images}, 11, 0)
    assert len({images[index] for index in chosen}) == 11


def test_the_seed_decides_between_equals() -> None:
    values = {"kind": ["present"] * 100}
    assert len({tuple(choose(values, 10, seed)) for seed in range(5)}) == 5


def records_of(folder: Path, records: list[dict[str, Any]]) -> Path:
    return write_records(folder, records=records)


def test_what_records_are_like(tmp_path: Path) -> None:
    path = records_of(
        tmp_path / "data",
        [
            {"image": "0.png", "text": "the clock", "bbox": [10, 20, 40, 45]},  # 30x25 of 160x120
            {"image": "0.png", "text": "two", "bbox": [[0, 0, 160, 120], [140, 90, 150, 110]], "label": ["a", "b"]},
            {"image": "1.png", "text": "the cactus", "bbox": []},
            {"image": "2.png", "question": "What colour is the cup?", "answer": "red"},
            {"image": "2.png", "text": "all", "bbox": [0, 0, 128, 128]},
        ],
    )
    records = read_records(path)
    twice = [Geometry(*size, 2 * size[0], 2 * size[1]) for size in (upright_size(record.image) for record in records)]
    values = strata(records, [[size] for size in twice], [80, 80, 72, 64, 64])
    assert values == {
        "kind": ["present", "present", "absent", "question", "present"],
        "label": ["the clock", "b", "the cactus", "What colour is the cup?", "all"],
        "size": ["medium", "small", "(absent)", "(question)", "large"],  # 60x50, 20x40 and 256x256 as the model sees it
        "position": ["top left", "bottom right", "(absent)", "(question)", "middle centre"],
        "image tokens": ["80-80", "80-80", "72-72", "64-64", "64-64"],
        "image": [str(record.image) for record in records],
    }
    assert tuple(values) == AXES


def test_image_tokens_are_cut_into_quarters(tmp_path: Path) -> None:
    records = read_records(records_of(tmp_path / "data", [RECORDS[0]])) * 8
    values = strata(records, [[Geometry(160, 120, 160, 128)]] * 8, [10, 80, 20, 70, 30, 60, 40, 50])
    assert values["image tokens"] == ["10-20", "70-80", "10-20", "70-80", "30-40", "50-60", "30-40", "50-60"]


def test_a_set_is_reproducible_and_told_in_full(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    chosen = calibration_set(base, data, samples=4, seed=0)
    again = calibration_set(base, shutil.copytree(data.parent, tmp_path / "copy") / data.name, samples=4, seed=0)
    assert chosen.to_dict() == again.to_dict()
    told = json.loads(json.dumps(chosen.to_dict()))
    assert told["samples"] == len(told["sources"]) == 4
    assert told["available"] == 6
    assert set(told["coverage"]) == set(AXES)
    for axis in ("kind", "label", "size", "position", "image tokens"):
        counts = told["coverage"][axis]["most_common"].values()
        assert sum(count["chosen"] for count in counts) == 4
        assert sum(count["available"] for count in counts) == 6
        assert told["coverage"][axis]["values"] == len(counts)
    assert told["coverage"]["image"] == {"values": 3, "covered": 3}
    assert told["coverage"]["kind"]["covered"] == 3
    others = {calibration_set(base, data, samples=4, seed=seed).sha256 for seed in range(1, 6)}
    assert others - {chosen.sha256}


def test_the_hash_is_that_of_pixels_and_words(qwen3_vl: Path, tmp_path: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    data = records_of(tmp_path / "data", [RECORDS[0]])
    before = calibration_set(base, data, samples=None, seed=0).sha256
    picture = Image.open(data.parent / "0.png")
    picture.save(data.parent / "0.png", compress_level=0)  # other bytes, same pixels
    assert calibration_set(base, data, samples=None, seed=0).sha256 == before
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(data.parent / "0.png")
    assert calibration_set(base, data, samples=None, seed=0).sha256 != before


def test_all_records_are_taken_unless_there_are_more_than_128(qwen3_vl: Path, tmp_path: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    few, many = records_of(tmp_path / "few", RECORDS), records_of(tmp_path / "many", RECORDS * 40)
    assert len(calibration_set(base, few, samples=None, seed=0).samples) == 6
    assert len(calibration_set(base, many, samples=None, seed=0).samples) == 128
    with pytest.raises(InputError, match=r"few.data\.jsonl: 6 records, but 7 samples are asked for"):
        calibration_set(base, few, samples=7, seed=0)


def test_a_picture_of_the_evaluation_is_refused_by_its_pixels(qwen3_vl: Path, tmp_path: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    data = records_of(tmp_path / "data", RECORDS[:2])
    held_out = write_records(tmp_path / "eval", seed=1, records=RECORDS[:1])
    calibration_set(base, data, samples=None, seed=0, evaluation=held_out)
    # The second picture of the data again, as another file in another format.
    Image.open(data.parent / "1.png").save(held_out.parent / "copy.bmp")
    with held_out.open("a") as stream:
        stream.write("\n" + json.dumps({"image": "copy.bmp", "question": "What?", "answer": "this"}) + "\n")
    message = rf"^{data}:2: its picture is also that of {held_out}:3; 1 of 2 records"
    with pytest.raises(InputError, match=message):
        calibration_set(base, data, samples=None, seed=0, evaluation=held_out)
    with pytest.raises(InputError, match=rf"^{data}:1: .* {data}:1; 2 of 2"):
        calibration_set(base, data, samples=None, seed=0, evaluation=data)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_sample_is_the_whole_conversation_as_transformers_makes_it(
    family: str, data: Path, request: pytest.FixtureRequest
) -> None:
    base = HubCheckpoint.open(request.getfixturevalue(family))
    samples = calibration_set(base, data, samples=None, seed=0).samples
    box = {"qwen3_vl": [62, 167, 688, 833], "qwen2_5_vl": [10, 19, 116, 93]}[family]
    answer = f'[{{"bbox_2d": {box}, "label": "the left clock"}}]'
    words = "Locate the left clock and output its bbox coordinates in JSON format."
    reference = conversation(base.folder, data.parent / "0.png", words, answer)
    inputs = batch(samples[0], base, torch.float32)
    assert set(inputs) == set(reference.inputs)
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor, reference.inputs[name], atol=0, rtol=0)
    told = [ROLES[role] for role in roles(samples[0], base)[0].tolist()]
    ids = inputs["input_ids"][0].tolist()
    image_id = base.tokenizer.encode("<|image_pad|>")[0]
    expected = ["image" if token == image_id else "prompt" for token in ids[: reference.prompt_length]]
    assert told == expected + ["answer"] * len(reference.answer_ids)


def test_roles_share_the_weight_as_told() -> None:
    both = [torch.tensor([[0, 0, 0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 2]])]  # 6 image, 2 prompt, 2 answer tokens
    assert all(bool((one == 1).all()) for one in token_weights(both, {}))
    weights = torch.cat(token_weights(both, {"image": 1, "prompt": 0, "answer": 3}), dim=1)[0]
    kinds = torch.cat(both, dim=1)[0]
    sums = [float(weights[kinds == role].sum()) for role in range(3)]
    assert sums == pytest.approx([2.5, 0, 7.5])


def test_resized_pictures_decide_the_tokens(qwen3_vl: Path, data: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    for sample in calibration_set(base, data, samples=None, seed=0).samples:
        geometry = base.spec.plan(*upright_size(sample.images[0])).geometry
        tokens = geometry.resized_width * geometry.resized_height // 32**2
        assert int((roles(sample, base) == ROLES.index("image")).sum()) == tokens


def test_batches_that_are_made_ahead_come_in_order(qwen3_vl: Path, data: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    samples = list(calibration_set(base, data, samples=None, seed=0).samples) * THREADS
    found = list(batches(samples, base, torch.float32))
    for sample, one in zip(samples, found, strict=True):
        expected = batch(sample, base, torch.float32)
        assert list(one) == list(expected)
        assert all(torch.equal(one[name], expected[name]) for name in expected)
