"""Calibration on conversations of several turns about several pictures, against transformers' own processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from edgetune.cli import cli
from edgetune_calibrate.batches import batch, roles
from edgetune_calibrate.samples import calibration_set, strata
from edgetune_calibrate.settings import ROLES
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample
from edgetune_core.coordinates import box_places
from edgetune_core.weightset import WeightSet
from edgetune_export.check.reference import record_cases
from edgetune_export.checkpoint import open_checkpoint
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.records import read_entries
from train.conftest import write_records

TALK: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You see well."},
        {"role": "user", "content": "<image>What is at <bbox>?"},
        {"role": "assistant", "content": "A clock.", "loss": False},
        {"role": "user", "content": "Where is its handle, and the one here: <image>?"},
        {"role": "assistant", "content": "At <bbox>, and there at <bbox>."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes, at <bbox>."},
    ],
    "images": ["0.png", "1.png"],
    "objects": {
        "bbox": [[10, 20, 110, 100], [20, 30, 60, 60], [9, 100, 81, 190], [9, 100, 81, 190]],
        "image_id": [0, 0, 1, 1],
    },
}
WORDS: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Is a mug a cup?"},
        {"role": "assistant", "content": "It is."},
        {"role": "user", "content": "And a glass?"},
        {"role": "assistant", "content": "No."},
    ],
    "images": [],
}
FIND: dict[str, Any] = {"image": "2.png", "text": "the cup", "bbox": [12, 20, 100, 90]}
# TALK's boxes in the frame of each family: thousandths, or pixels of 168x112 and 84x196.
BOXES = {
    "qwen3_vl": [[62, 167, 688, 833], [125, 250, 375, 500], [100, 500, 900, 950], [100, 500, 900, 950]],
    "qwen2_5_vl": [[10, 19, 116, 93], [21, 28, 63, 56], [8, 98, 76, 186], [8, 98, 76, 186]],
}


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def base(request: pytest.FixtureRequest) -> HubCheckpoint:
    return HubCheckpoint.open(request.getfixturevalue(request.param))


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_records(tmp_path / "talks", records=[TALK, WORDS, FIND])


def samples_of(base: HubCheckpoint, data: Path) -> list[Sample]:
    return list(calibration_set(base, data, samples=None, seed=0).samples)


def turns_of(family: str) -> list[dict[str, Any]]:
    """TALK as a chat template takes it, its boxes written in the family's frame."""
    boxes, turns = iter(BOXES[family]), []
    for turn in TALK["messages"]:
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(turn["content"].split("<image>")):
            parts += [{"type": "image"}] * (number > 0)
            first, *others = piece.split("<bbox>")
            parts.append({"type": "text", "text": first + "".join(str(next(boxes)) + other for other in others)})
        turns.append({"role": turn["role"], "content": parts})
    return turns


def reference(base: HubCheckpoint, data: Path) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """What transformers makes of TALK, and its prompt up to each of the three answers."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base.folder)
    processor: Any = AutoImageProcessor.from_pretrained(base.folder, backend="pil")
    images = [Image.open(data.parent / name).convert("RGB") for name in TALK["images"]]
    pixels = processor(images=images, return_tensors="pt")
    counts = (pixels["image_grid_thw"].prod(1) // processor.merge_size**2).tolist()

    def ids(turns: list[dict[str, Any]], *, prompt: bool) -> list[int]:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        first, *others = text.split("<|image_pad|>")
        text = first + "".join("<|image_pad|>" * n + other for n, other in zip(counts, others, strict=False))
        return list(tokenizer(text.removesuffix("\n") if not prompt else text, add_special_tokens=False)["input_ids"])

    turns = turns_of(base.family.name)
    input_ids = torch.tensor([ids(turns, prompt=False)])
    image = (input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": image,
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": pixels["image_grid_thw"],
    }
    return inputs, [ids(turns[:end], prompt=True) for end in (2, 4, 6)]


def test_a_sample_is_the_whole_conversation_as_transformers_makes_it(base: HubCheckpoint, talks: Path) -> None:
    sample = samples_of(base, talks)[0]
    expected, prompts = reference(base, talks)
    inputs = batch(sample, base, torch.float32)
    assert set(inputs) == set(expected)
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
    ids = expected["input_ids"][0].tolist()
    end = base.tokenizer.encode(base.family.chat.end)[0]
    kinds = ["image" if image else "prompt" for image in expected["mm_token_type_ids"][0].tolist()]
    for prompt in prompts:  # an answer goes from its prompt's end to the token that ends it
        assert ids[: len(prompt)] == prompt
        last = ids.index(end, len(prompt)) + 1
        kinds[len(prompt) : last] = ["answer"] * (last - len(prompt))
    assert [ROLES[role] for role in roles(sample, base)[0].tolist()] == kinds
    assert sample.last_prompt_ids == prompts[-1]


def test_a_conversation_without_a_picture_is_a_sample_of_words_alone(base: HubCheckpoint, talks: Path) -> None:
    sample = samples_of(base, talks)[1]
    assert set(batch(sample, base, torch.float32)) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert "image" not in {ROLES[role] for role in roles(sample, base)[0].tolist()}
    write_records(talks.parent / "words", records=[WORDS])
    with pytest.raises(InputError, match=r"none of the 1 samples has a picture"):
        calibration_set(base, talks.parent / "words" / "data.jsonl", samples=None, seed=0)


def test_boxes_are_those_that_the_model_learns_to_say(base: HubCheckpoint, talks: Path) -> None:
    sample = samples_of(base, talks)[0]
    places = box_places(sample, base.tokenizer)
    read = [
        [int(base.tokenizer.decode([sample.answer_ids[i] for i in digits])) for digits in box] for box in places.digits
    ]
    assert read == BOXES[base.family.name][1:]  # the first is the user's


def test_what_conversations_are_like(talks: Path) -> None:
    twice = [Geometry(160, 120, 320, 240), Geometry(90, 200, 180, 400)]
    values = strata(read_entries(talks), [twice, [], [Geometry(128, 128, 128, 128)]], [180, 0, 16])
    assert values == {
        "kind": ["conversation", "conversation", "present"],
        "label": ["What is at ?", "Is a mug a cup?", "the cup"],
        "size": ["medium", "(conversation)", "medium"],  # 80x60 as the model sees it
        "position": ["middle left", "(conversation)", "middle centre"],
        "image tokens": ["180-180", "0-0", "16-16"],
        "image": [f"{talks.parent / '0.png'} {talks.parent / '1.png'}", "", str(talks.parent / "2.png")],
    }


def test_all_pictures_of_a_conversation_count(qwen3_vl: Path, talks: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    before = calibration_set(base, talks, samples=None, seed=0).sha256
    # One that is evaluated on as the second picture of a conversation, in another format.
    held_out = write_records(talks.parent / "held", seed=1, records=[FIND, TALK])
    calibration_set(base, talks, samples=None, seed=0, evaluation=held_out)
    Image.open(talks.parent / "1.png").save(held_out.parent / "1.bmp")
    held_out.write_text(held_out.read_text().replace("1.png", "1.bmp"))
    message = rf"^{talks}:1: its picture 1\.png is also that of {held_out}:2; 1 of 3 records"
    with pytest.raises(InputError, match=message):
        calibration_set(base, talks, samples=None, seed=0, evaluation=held_out)
    picture = Image.open(talks.parent / "1.png")
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(talks.parent / "1.png")
    assert calibration_set(base, talks, samples=None, seed=0).sha256 != before


def run(*arguments: str | Path) -> None:
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output


def test_conversations_are_calibrated_on_by_their_boxes_and_an_export_is_checked_on_them(
    qwen3_vl: Path, talks: Path, tmp_path: Path
) -> None:
    """From `calibrate` with formats chosen by boxes to a bundle that is compared on the conversation's last answer."""
    options = ("--method", "rtn", "--bits", "4,8", "--group-size", "32", "--max-drop", "50")
    run("calibrate", "--checkpoint", qwen3_vl, "--data", talks, "--output", tmp_path / "set", *options)
    weights = WeightSet.load(tmp_path / "set")
    told = weights.fields["calibration"]
    assert (told["samples"], told["coverage"]["kind"]["most_common"]["conversation"]["chosen"]) == (3, 2)
    assert told["choice"]["measured_drop"] > 0
    bundle = tmp_path / "bundle"
    run("export", "--checkpoint", qwen3_vl, "--weights", tmp_path / "set", "--output", bundle)
    parity = json.loads((bundle / "manifest.json").read_text())["result"]["bundle"]["parity"]
    assert (parity["drift"]["records"], parity["drift"]["source"]) == (2, str(talks))
    assert parity["exact"]["answers_equal"] == parity["exact"]["answers"] == 5  # and three generated pictures

    base = HubCheckpoint.open(qwen3_vl)
    expected, prompts = reference(base, talks)
    cases, _ = record_cases(open_checkpoint(qwen3_vl), weights)
    assert [case.name for case in cases] == ["data.jsonl:1", "data.jsonl:3"]
    assert cases[0].token_ids.tolist() == prompts[-1]
    for name, array in cases[0].arrays.items():
        torch.testing.assert_close(torch.from_numpy(array), expected[name], atol=0, rtol=0)
    [short] = record_cases(open_checkpoint(qwen3_vl), weights, max_length=len(prompts[-1]))[0]
    assert short.name == "data.jsonl:3"  # a bundle that the conversation does not fit into
