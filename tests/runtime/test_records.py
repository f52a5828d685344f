"""Data files: the four forms, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.errors import InputError, RecordError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.records import Record, read_records

FAMILY = FAMILIES["qwen3_vl"]
ONE: dict[str, Any] = {"ref": ["cup"], "bbox": [[1, 2, 3, 4]]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one 64x48 picture and one that its EXIF data turns on its side."""
    (tmp_path / "pictures").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    image.save(tmp_path / "pictures" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "pictures" / "turned.jpg", exif=exif)
    return tmp_path


def read(folder: Path, *lines: Any) -> list[Record]:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_records(path)


def ground(**change: Any) -> dict[str, Any]:
    return {"image": "pictures/a.png", "text": "the cup", "bbox": [1, 2, 30.5, 40], **change}


def swift(user: str, answer: str, **objects: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}],
        "images": ["pictures/a.png"],
        "objects": objects,
    }


def test_one_box(folder: Path) -> None:
    [record] = read(folder, ground())
    assert record.kind == "ground" and record.boxes is not None
    assert record.boxes.dtype == np.float32 and record.boxes.tolist() == [[1, 2, 30.5, 40]]
    assert record.labels == ["the cup"] and record.answer is None
    assert record.image == folder / "pictures" / "a.png" and record.source == "data.jsonl:1"
    assert record.prompt(FAMILY) == "Locate the cup and output its bbox coordinates in JSON format."


def test_several_boxes_and_none(folder: Path) -> None:
    several, named, absent = read(
        folder,
        ground(bbox=[[1, 2, 3, 4], [5, 6, 7, 8]]),
        ground(bbox=[[1, 2, 3, 4], [5, 6, 7, 8]], label=["left", "right"]),
        ground(bbox=[]),
    )
    assert several.labels == ["the cup", "the cup"] and named.labels == ["left", "right"]
    assert absent.boxes is not None and absent.boxes.shape == (0, 4) and absent.labels == []


def test_braces_in_a_phrase_are_just_text(folder: Path) -> None:
    [record] = read(folder, ground(text="the {x} sign"))
    assert "Locate the {x} sign and" in record.prompt(FAMILY)


def test_questions(folder: Path) -> None:
    one, many = read(
        folder,
        {"image": "pictures/a.png", "question": "What colour?", "answer": "red"},
        {"image": "pictures/a.png", "question": "What colour?", "answer": ["pink", "red", "red"]},
    )
    assert one.kind == "vqa" and one.boxes is None and one.answer == "red"
    assert one.prompt(FAMILY) == "What colour?"
    assert many.answer == "red" and many.answers == ["pink", "red", "red"]


def test_conversation(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]
    [record] = read(folder, {"id": "7", "image": "pictures/a.png", "conversations": turns})
    assert (record.kind, record.text, record.answer) == ("vqa", "What is it?", "A cup.")


@pytest.mark.parametrize(
    ("user", "answer", "objects", "prompt", "labels"),
    [
        ("<image>Find <ref-object>.", "<bbox>", {"ref": ["cup"], "bbox": [[1, 2, 3, 4]]}, "Find cup.", ["cup"]),
        (
            "<image>Find all <ref-object>",
            "<bbox><bbox>",
            {"ref": ["cups"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
            "Find all cups",
            ["cups", "cups"],
        ),
        (
            "Detect everything",
            '[{"bbox_2d": <bbox>, "label": "<ref-object>"}, {"bbox_2d": <bbox>, "label": "<ref-object>"}]',
            {"ref": ["cup", "mug"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
            "Detect everything",
            ["cup", "mug"],
        ),
        (
            "Find <ref-object> and <ref-object>",
            "<bbox><bbox>",
            {"ref": ["cup", "mug"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
            "Find cup and mug",
            ["cup", "mug"],
        ),
        ("<image>Find <ref-object>", "[]", {"ref": ["cup"], "bbox": []}, "Find cup", []),
    ],
)
def test_messages_with_objects(
    folder: Path, user: str, answer: str, objects: dict[str, Any], prompt: str, labels: list[str]
) -> None:
    [record] = read(folder, swift(user, answer, **objects))
    assert record.kind == "ground" and record.boxes is not None
    assert record.boxes.tolist() == objects["bbox"]
    assert record.prompt(FAMILY) == prompt and record.labels == labels


def test_messages_without_objects(folder: Path) -> None:
    record = swift("<image>What is it?", "A cup.")
    del record["objects"]
    [read_back] = read(folder, record)
    assert (read_back.kind, read_back.text, read_back.answer) == ("vqa", "What is it?", "A cup.")


def test_boxes_are_checked_against_the_upright_image(folder: Path) -> None:
    tall = ground(image="pictures/turned.jpg", bbox=[0, 0, 48, 64])
    assert read(folder, tall)
    with pytest.raises(RecordError, match="leaves the 48x64 image"):
        read(folder, {**tall, "bbox": [0, 0, 64, 48]})


def test_blank_lines_do_not_shift_line_numbers(folder: Path) -> None:
    records = read(folder, "", ground(), "  ", ground())
    assert [record.source for record in records] == ["data.jsonl:2", "data.jsonl:4"]


def test_byte_order_mark(folder: Path) -> None:
    assert read(folder, "\ufeff" + json.dumps(ground()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "pictures/a.png", "text"', "not valid JSON"),
        ("[1, 2]", "a record is a JSON object, got list"),
        ("[" * 100_000, "nested too deeply"),
        (ground(image="pictures/gone.png"), "gone.png: no such image file"),
        (ground(image="data.jsonl"), "not an image"),
        (ground(image=5), "'image' must be a text"),
        (ground(text=" "), "'text' must be a text that is not empty"),
        (ground(bbox=[0, 0, 65, 40]), r"bbox \[0.0, 0.0, 65.0, 40.0\] leaves the 64x48 image pictures/a.png"),
        (ground(bbox=[-1, 0, 6, 4]), "leaves the 64x48 image"),
        (ground(bbox=[30, 2, 1, 40]), "empty or inverted: x1 >= x2"),
        (ground(bbox=[1, 9, 30, 9]), "empty or inverted: y1 >= y2"),
        (ground(bbox=[[1, 2, 3, 4], [3, 4]]), r"four numbers \[x1, y1, x2, y2\], got \[3, 4\]"),
        (ground(bbox=[1, 2, "3", 4]), "four numbers"),
        (ground(bbox=[1, 2, True, 4]), "four numbers"),
        ('{"image": "pictures/a.png", "text": "cup", "bbox": [1, 2, NaN, 4]}', "four numbers"),
        (ground(bbox="cup"), "'bbox' must be a list"),
        (ground(label=["a", "b"]), "1 boxes but 2 labels"),
        (ground(boxx=[]), "unknown key 'boxx'"),
        ({"image": "pictures/a.png", "text": "cup"}, "missing key 'bbox'"),
        ({"image": "pictures/a.png"}, "unknown form: keys 'image'"),
        ({"image": "pictures/a.png", "question": "What?", "answer": []}, "'answer' must be"),
        (
            {"image": "pictures/a.png", "conversations": [{"from": "human", "value": "Hi"}]},
            "must be one 'human' and one 'gpt' turn",
        ),
        (
            swift("Find <ref-object>", "<bbox>", ref=["cup"], bbox=[[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 2, 2]])
            | {"images": []},
            "'images' must be a list of one path",
        ),
        (
            swift("Find <ref-object>", "<bbox><bbox>", ref=["cup"], bbox=[[1, 2, 3, 4]]),
            "2 <bbox> in the answer but 1 boxes",
        ),
        (swift("Find it", "It is at <bbox>", ref=["cup"], bbox=[[1, 2, 3, 4]]), "placeholders only"),
        (swift("What is at <bbox>?", "<ref-object>", ref=["cup"], bbox=[[1, 2, 3, 4]]), "not supported"),
        (
            swift("Find <ref-object>", "<bbox>", ref=["cup"], bbox=[[1, 2, 3, 4]], bbox_type="norm1"),
            "unknown key 'bbox_type'",
        ),
        (swift("Find <ref-object>", "<bbox>", ref=["cup"], bbox=[[1, 2, 300, 4]]), "leaves the 64x48 image"),
    ],
)
def test_bad_lines(folder: Path, line: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        read(folder, ground(), line)
    assert str(caught.value).startswith(f"{folder / 'data.jsonl'}:2: ")
    assert "\n" not in str(caught.value)
    assert (caught.value.line, caught.value.exit_code) == (2, 2)


def test_a_mistyped_key_gets_a_suggestion(folder: Path) -> None:
    with pytest.raises(RecordError) as caught:
        read(folder, {**ground(), "labl": "x"})
    assert caught.value.hint == "did you mean 'label'?"


def test_lines_that_are_not_text(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(json.dumps(ground()).encode() + b"\n\xff\xfe\n")
    with pytest.raises(RecordError, match=r"data\.jsonl:2: not UTF-8 text"):
        read_records(path)


def test_images_that_no_model_accepts(folder: Path) -> None:
    Image.new("RGB", (402, 2)).save(folder / "pictures" / "long.png")
    with pytest.raises(RecordError, match=r"data\.jsonl:1: aspect ratio 201\.0"):
        read(folder, ground(image="pictures/long.png"))


def test_missing_and_empty_files(folder: Path) -> None:
    with pytest.raises(InputError, match="no such data file"):
        read_records(folder / "gone.jsonl")
    with pytest.raises(InputError, match="no records"):
        read(folder, "")
