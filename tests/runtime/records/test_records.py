"""Data files: the forms of one question, and one clear line for every kind of bad input."""

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
from lines import ask, ground, pictures, swift

FAMILY = FAMILIES["qwen3_vl"]
ONE: dict[str, Any] = {"ref": ["cup"], "bbox": [[1, 2, 3, 4]]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with pictures."""
    return pictures(tmp_path)


def read(folder: Path, *lines: Any) -> list[Record]:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_records(path)


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


def test_a_caption_answers_the_request_for_one(folder: Path) -> None:
    [record] = read(folder, {"image": "pictures/a.png", "text": "Two cups on a desk.", "id": 9})
    assert (record.kind, record.boxes, record.answer, record.id) == ("vqa", None, "Two cups on a desk.", "9")
    assert record.prompt(FAMILY) == "Describe this image."


def test_a_record_may_say_its_own_source_once(folder: Path) -> None:
    told = {"image": "pictures/a.png", "text": "Two cups.", "source": "instances.json#3/cup"}
    caption = {"image": "pictures/a.png", "text": "Two cups."}
    assert [record.source for record in read(folder, told, caption)] == ["instances.json#3/cup", "data.jsonl:2"]
    with pytest.raises(RecordError, match=r"data\.jsonl:2: 'source' 'instances\.json#3/cup' is also that of line 1"):
        read(folder, told, told)


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
        ('{"image": "pictures/a.png", "text": "cup", "bbox": [1, 2, NaN, 4]}', "NaN is no number of JSON"),
        ('{"image": "pictures/a.png", "text": "cup", "bbox": [1, 2, 1e400, 4]}', "1e400 is too large"),
        (ground(bbox=[1, 2, 10**400, 4]), "a whole number of 401 digits"),
        ('{"image": "pictures/a.png", "text": "half a \\ud83d pair", "bbox": []}', "half of a surrogate pair"),
        ('{"image": "pictures/a.png", "text": "cup", "bbox": [], "bbox": [1, 2, 3, 4]}', "key 'bbox' twice"),
        (ground(image="a" * 300 + ".png"), "File name too long"),
        (ground(image="a\0b.png"), "no such image file"),
        (ground(bbox="cup"), "'bbox' must be a list"),
        (ground(bbox=[[1, 2, 3, 4]] * 10_001), "10001 boxes, and a record has at most 10000"),
        (swift("Find it", "<bbox>", bbox=[[1, 2, 3, 4]] * 10_001), "10001 boxes, and a record has at most 10000"),
        (ground(label=["a", "b"]), "1 boxes but 2 labels"),
        (ground(boxx=[]), "unknown key 'boxx'"),
        ({"image": "pictures/a.png", "text": "cup", "label": "cup"}, "missing key 'bbox'"),
        ({"image": "pictures/a.png"}, "unknown form: keys 'image'"),
        ({"image": "pictures/a.png", "question": "What?", "answer": []}, "'answer' must be"),
        (
            {"image": "pictures/a.png", "conversations": [{"from": "human", "value": "Hi"}]},
            "'conversations' must go user, assistant",
        ),
        (
            swift("Find <ref-object>", "<bbox>", ref=["cup"], bbox=[[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 2, 2]]),
            "1 <bbox> in the turns but 3 in 'objects.bbox'",
        ),
        (
            swift("Find <ref-object>", "<bbox>", **ONE) | {"images": []},
            r"bbox \[1.0, 2.0, 3.0, 4.0\] lies on image 0, counted from 0, but there are 0 images",
        ),
        (
            swift("Find <ref-object>", "<bbox><bbox>", ref=["cup"], bbox=[[1, 2, 3, 4]]),
            "2 <bbox> in the turns but 1 in 'objects.bbox'",
        ),
        (
            swift("Find <ref-object>", "<bbox>", ref=["cup", "mug"], bbox=[[1, 2, 3, 4]]),
            "1 <ref-object> in the turns but 2",
        ),
        (swift("<image><image>Find it", "<bbox>", **ONE), "2 <image> in the turns but 1 images"),
        (swift("Find it", "<image><bbox>", **ONE), "<image> outside the user's turns"),
        (swift("Find it", "<bbox>", **ONE, image_id=[1]), "lies on image 1, counted from 0, but there are 1 images"),
        (swift("Find it", "<bbox>", **ONE, image_id=[0, 0]), "2 in 'objects.image_id' but 1"),
        (swift("Find it", "<bbox>", **ONE, image_id=["0"]), "'objects.image_id' must be a list of whole numbers"),
        (swift("Find it", "<bbox>", bbox=[[1, 2, 3]]), r"a place is four numbers .* got \[1, 2, 3\]"),
        (swift("Point at it", "<bbox>", bbox=[[65, 2]]), r"point \[65.0, 2.0\] leaves the 64x48 image"),
        ({**swift("Find it", "at <bbox>"), "objects": None}, "<bbox> in the turns but no 'objects'"),
        (ground(id=True), "'id' must be a text or a whole number"),
        (ground(meta=[]), "'meta' must be an object"),
        (ask(("user", "Hi"), ("user", "Hello")), "must go user, assistant"),
        (
            ask(
                ("assistant", "Hi"),
            ),
            "must go user, assistant",
        ),
        (ask(("tool", "Hi"), ("assistant", "Hello")), r"messages\[0\]: unknown role 'tool'"),
        (ask(("user", "Hi"), ("assistant", " ")), r"messages\[1\]: 'content' must be a text that is not empty"),
        (ask(("user", "Hi", True), ("assistant", "Hello")), r"messages\[0\]: 'loss' is true on a user turn"),
        (ask(("user", "Hi"), ("assistant", "Hello", "yes")), r"messages\[1\]: 'loss' must be true or false"),
        (ask(("user", "Hi"), ("assistant", "Hello", False)), "no turn is learned"),
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
