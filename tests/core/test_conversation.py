"""Records and dialogues as tokens, against transformers' chat template and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.records import read_entries
from edgetune_runtime.tokens import TextTokenizer

BUILT = ["qwen3_vl", "qwen2_5_vl"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two pictures, 200x150 and 90x120."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 90, 3), np.uint8)).save(tmp_path / "b.png")
    return tmp_path


def samples(folder: Path, checkpoint: Path, family: str, *lines: dict[str, Any]) -> list[Sample]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec, tokenizer = ImageSpec.from_checkpoint(checkpoint), TextTokenizer(checkpoint / "tokenizer.json")
    return prepare(read_entries(path), FAMILIES[family], spec, tokenizer)


TALK: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You see well."},
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "A cup, I think."},
        {"role": "user", "content": "And here: <image>?"},
        {"role": "assistant", "content": "Two mugs.", "loss": False},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ],
    "images": ["a.png", "b.png"],
}


def in_parts(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return turns as the template takes them: a picture is a part of its own."""
    found = []
    for turn in turns:
        head, mark, tail = turn["content"].partition("<image>")
        texts = [{"type": "text", "text": text} for text in (head, tail)]
        parts = [texts[0], {"type": "image"}, texts[1]] if mark else turn["content"]
        found.append({"role": turn["role"], "content": parts})
    return found


@pytest.mark.parametrize("with_system", [True, False])
@pytest.mark.parametrize("name", BUILT)
def test_a_conversation_equals_the_chat_template(
    name: str, with_system: bool, folder: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    turns = TALK["messages"] if with_system else TALK["messages"][1:]
    [sample] = samples(folder, checkpoint, name, {**TALK, "messages": turns})

    text = tokenizer.apply_chat_template(in_parts(turns), tokenize=False)
    image = FAMILIES[name].chat.image_token
    spec = ImageSpec.from_checkpoint(checkpoint)
    counts = [size.resized_width * size.resized_height // spec.factor**2 for size in sample.geometries]
    first, second, last = text.split(image)
    expected = tokenizer.encode(
        first + image * counts[0] + second + image * counts[1] + last.removesuffix("\n"), add_special_tokens=False
    )
    assert sample.ids == expected
    said = tokenizer.decode([i for i, learned in zip(sample.ids, sample.learned, strict=True) if learned])
    end = FAMILIES[name].chat.end
    assert said == f"A cup, I think.{end}Yes.{end}"
    assert sample.images == (folder / "a.png", folder / "b.png")


@pytest.mark.parametrize("name", BUILT)
def test_a_question_is_the_prompt_of_inference_and_its_answer(
    name: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(name)
    family, tokenizer = FAMILIES[name], TextTokenizer(checkpoint / "tokenizer.json")
    [sample] = samples(folder, checkpoint, name, {"image": "a.png", "text": "the cup", "bbox": [20, 30, 120, 90]})
    spec, size = ImageSpec.from_checkpoint(checkpoint), sample.geometry
    prompt = tokenizer.prompt(
        family.chat,
        "Locate the cup and output its bbox coordinates in JSON format.",
        image_tokens=size.resized_width * size.resized_height // spec.factor**2,
        image_token=tokenizer.encode(family.chat.image_token)[0],
    )
    assert sample.prompt_ids == prompt.tolist()
    assert sample.ids == sample.prompt_ids + sample.answer_ids
    frame = (1000, 1000) if name == "qwen3_vl" else (size.resized_width, size.resized_height)
    x1, y1, x2, y2 = (round(n * f / s) for n, f, s in zip((20, 30, 120, 90), frame * 2, (200, 150) * 2, strict=True))
    answer = f'[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "the cup"}}]{family.chat.end}'
    assert tokenizer.decode(sample.answer_ids, keep_control=True) == answer


def test_places_of_a_conversation_are_written_in_the_frame_of_their_own_picture(folder: Path, qwen3_vl: Path) -> None:
    talk = {
        "messages": [
            {"role": "user", "content": "<image><image>What is at <bbox>?"},
            {"role": "assistant", "content": "<ref-object>, its handle at <bbox>."},
        ],
        "images": ["a.png", "b.png"],
        "objects": {"ref": ["a cup"], "bbox": [[20, 30, 120, 90], [45, 60]], "image_id": [0, 1]},
    }
    [sample] = samples(folder, qwen3_vl, "qwen3_vl", talk)
    text = TextTokenizer(qwen3_vl / "tokenizer.json").decode(sample.ids, keep_control=True)
    assert "What is at [100, 200, 600, 600]?" in text
    assert "a cup, its handle at [500, 500]." in text


def test_what_a_conversation_may_not_hold(folder: Path, qwen3_vl: Path) -> None:
    def talk(user: str, answer: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        return {"messages": [*turns, *turns], "images": ["a.png"]}

    with pytest.raises(InputError, match=r"data\.jsonl:1: the text contains the control token '<\|im_end\|>'"):
        samples(folder, qwen3_vl, "qwen3_vl", talk("Hi<|im_end|>", "Hello"))
    with pytest.raises(InputError, match=r"data\.jsonl:1: the answer holds"):
        samples(folder, qwen3_vl, "qwen3_vl", talk("Hi", "Hello<|im_end|>"))


def test_a_box_too_thin_to_write_names_its_record(folder: Path, qwen3_vl: Path) -> None:
    thin = {"image": "a.png", "text": "a hair", "bbox": [20, 30, 20.05, 90]}
    with pytest.raises(InputError, match=r"data\.jsonl:1: box .* is too thin"):
        samples(folder, qwen3_vl, "qwen3_vl", thin)
