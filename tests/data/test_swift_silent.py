"""Where ms-swift deletes, swaps, clamps, pads or ignores without stopping, a record is refused with a reason.

Each case is one row of the table in docs/data.md; what the other tool does was read in its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.converting import convert, lines, pictures, write_lines

BOX = [10, 20, 50, 60]


def grounded(**changes: Any) -> dict[str, Any]:
    """A good record, changed."""
    good = {
        "messages": [
            {"role": "user", "content": "<image>Find <ref-object>"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "images": ["desk.png"],
        "objects": {"ref": ["cup"], "bbox": [BOX]},
    }
    return {key: value for key, value in (good | changes).items() if value is not ...}


def objects(**changes: Any) -> dict[str, Any]:
    values = {"ref": ["cup"], "bbox": [BOX]} | changes
    return grounded(objects={key: value for key, value in values.items() if value is not ...})


def said(user: Any, answer: Any, **extra: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": user} | extra, {"role": "assistant", "content": answer}]
    return grounded(messages=turns, objects=...)


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "<image>Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}

CASES = {
    # deleted there
    "point of three numbers": (
        objects(bbox=[[1, 2, 3]]),
        "a bbox is [x1, y1, x2, y2] or a point [x, y], got [1, 2, 3]",
    ),
    "one flat box": (objects(bbox=BOX), "1 <bbox> in the messages but 4 in"),
    "no bbox": (objects(bbox=...), "'objects' has no 'bbox'"),
    "no messages": (grounded(messages=[]), "the messages must be a list of objects, none empty"),
    "tool": (grounded(messages=[USER, {"role": "tool_call", "content": "{}"}]), "role 'tool_call' is not supported"),
    "empty content": (said("<image>Hi", None), "a message has role and content (or from and value), got ['role']"),
    "nothing said": ({"images": ["desk.png"]}, "no messages and no answer: keys 'images'"),
    # swapped there
    "x1 > x2": (objects(bbox=[[50, 20, 10, 60]]), "bbox [50.0, 20.0, 10.0, 60.0] is empty or inverted: x1 >= x2"),
    "y1 > y2": (objects(bbox=[[10, 60, 50, 20]]), "bbox [10.0, 60.0, 50.0, 20.0] is empty or inverted: y1 >= y2"),
    # passed on as they are, beyond the frame
    "outside": (objects(bbox=[[10, 20, 161, 60]]), "bbox [10.0, 20.0, 161.0, 60.0] leaves the 160x120 image"),
    "no area": (objects(bbox=[[10, 20, 10, 60]]), "bbox [10.0, 20.0, 10.0, 60.0] is empty or inverted: x1 >= x2"),
    "point outside": (objects(bbox=[[10, 121]]), "point [10.0, 121.0] leaves the 160x120 image"),
    "norm1 in pixels": (objects(bbox_type="norm1"), f"bbox {BOX} is not between 0 and 1, as bbox_type norm1 says"),
    # taken for "real" there
    "unknown type": (objects(bbox_type="norm1000"), "bbox_type 'norm1000' is not supported"),
    # padded with 0, cut off or counted from the end there
    "image_id short": (objects(image_id=[0, 0]), "2 in 'objects.image_id' but 1 in 'objects.bbox'"),
    "image_id far": (objects(image_id=[1]), "'objects.image_id' says 1 but there are 1 images, counted from 0"),
    "image_id negative": (objects(image_id=[-1]), "'objects.image_id' says -1 but there are 1 images"),
    # left as literal text there, or ignored
    "more boxes": (objects(bbox=[BOX, BOX]), "1 <bbox> in the messages but 2 in 'objects.bbox'"),
    "fewer boxes": (objects(bbox=[]), "1 <bbox> in the messages but 0 in 'objects.bbox'"),
    "more names": (objects(ref=["cup", "mug"]), "1 <ref-object> in the messages but 2 in 'objects.ref'"),
    "fewer names": (objects(ref=...), "1 <ref-object> in the messages but 0 in 'objects.ref'"),
    "marks without objects": (grounded(objects=...), "<ref-object> in the turns but no 'objects'"),
    "more marks than images": (said("<image><image>Hi", "Ho"), "2 <image> in the messages but 1 images"),
    "boxes without images": (grounded(images=...), "1 <image> in the messages but 0 images"),
    "no image for boxes": (
        grounded(
            images=...,
            messages=[{"role": "user", "content": "<ref-object>"}, {"role": "assistant", "content": "<bbox>"}],
        ),
        "1 in 'objects.bbox' but no image",
    ),
    "unknown in objects": (objects(labels=["cup"]), "unknown key 'labels' in 'objects'"),
    "unknown in message": (said("<image>Hi", "Ho", name="Ada"), "unknown key 'name' in a message"),
    "loss on the user": (said("<image>Hi", "Ho", loss=True), "'loss' on a user message"),
    "weighted loss": (
        grounded(messages=[USER, ANSWER | {"loss_scale": 2.0}], objects=...),
        "'loss_scale' 2.0 is not supported",
    ),
    "misspelt key": (grounded(imagess=["shelf.png"]), "unknown key 'imagess'"),
    "other training": (grounded(rejected_response="no"), "'rejected_response' is not supported"),
    "videos": (grounded(videos=["a.mp4"]), "'videos' is not supported"),
    "video mark": (said("<image><video>Hi", "Ho"), "<video> is not supported"),
    "two prompts": (
        grounded(messages=[SYSTEM, USER, ANSWER], system="Be long.", objects=...),
        "a system prompt beside the",
    ),
    "late system": (grounded(messages=[USER, ANSWER, SYSTEM], objects=...), "'messages' must go user, assistant, user"),
    "two names of one thing": (
        {"query": "<image>Hi", "response": "Ho", "answer": "Hu", "images": ["desk.png"]},
        "'response' and 'answer' mean the same",
    ),
    # joined without a space there
    "twice the user": (grounded(messages=[USER, USER, ANSWER], objects=...), "two user messages in a row"),
    # nothing is learned there
    "no answer": (
        grounded(messages=[USER, ANSWER, USER], images=["desk.png", "desk.png"], objects=...),
        "'messages' must go",
    ),
    "first of several answers": (
        {"query": "<image>Hi", "response": ["Ho", "Hu"], "images": ["desk.png"], "system": "Be brief."},
        "2 answers in a list",
    ),
    # another record takes its place there
    "no picture": (grounded(images=["gone.png"]), "gone.png: no such image file"),
    "not a picture": (grounded(images=["input.jsonl"]), "not an image, or in a format that Pillow cannot read"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_silent_elsewhere_is_told(tmp_path: Path, name: str) -> None:
    record, message = CASES[name]
    pictures(tmp_path)
    path = write_lines(tmp_path / "input.jsonl", grounded(), record)
    result = convert(path, tmp_path / "out", "--format", "swift")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}:2: ")
    assert message in result.stderr.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_all_of_them_are_listed_with_their_reasons(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "input.jsonl", grounded(), *(record for record, _ in CASES.values()))
    result = convert(path, tmp_path / "out", "--format", "swift", "--on-error", "report")
    assert result.exit_code == 0
    assert f"records rejected: {len(CASES)}, the first: {path}:2: " in result.stderr
    assert result.stdout.endswith(f"1 records (1 ground) of 1 pictures from swift, {len(CASES)} rejected\n")
    rejected = lines(tmp_path / "out" / "rejected.jsonl")
    assert [line["source"] for line in rejected] == [f"input.jsonl:{n}" for n in range(2, len(CASES) + 2)]
    for line, (record, message) in zip(rejected, CASES.values(), strict=True):
        assert message in line["problem"]
        assert line["record"] == record


def test_a_picture_that_is_stored_turned_is_not_guessed_about(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (160, 120)).save(tmp_path / "desk.png", exif=exif)
    path = write_lines(tmp_path / "input.jsonl", grounded())
    swift = ("--format", "swift")
    refused = convert(path, tmp_path / "out", *swift)
    assert refused.exit_code == 2
    assert "is stored turned (EXIF orientation 6)" in refused.stderr
    assert convert(path, tmp_path / "stored", *swift, "--orientation", "stored").exit_code == 0
    # Stored 160x120 and turned a quarter clockwise to be upright: (x, y) lands on (120 - y, x).
    assert lines(tmp_path / "stored" / "data.jsonl")[0]["objects"]["bbox"] == [[60, 10, 100, 50]]
    assert convert(path, tmp_path / "upright", *swift, "--orientation", "upright").exit_code == 0
    assert lines(tmp_path / "upright" / "data.jsonl")[0]["objects"]["bbox"] == [BOX]


def test_marks_that_are_added_for_pictures_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path)
    turns = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Ho"}]
    path = write_lines(tmp_path / "input.jsonl", {"messages": turns, "images": ["desk.png", "shelf.png"]})
    result = convert(path, tmp_path / "out", "--format", "swift")
    assert "records whose first message got <image> marks for pictures that had none: 1" in result.stderr
    assert lines(tmp_path / "out" / "data.jsonl")[0]["messages"][0]["content"] == "<image><image>Hi"
