"""Boxes that conversations hold as text: found in every spelling, converted in the frame that is told or proven."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.converting import convert, lines, pictures, write_json, write_lines
from edgetune.cli import cli
from edgetune_data.read import load
from edgetune_data.settings import ReadSettings
from edgetune_data.text_boxes import TEXT_FRAMES
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import encode
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import get_family
from edgetune_runtime.records import Record, read_entries

# One box of a 160x120 picture in every frame.
BOX = [16, 30, 96, 90]
ASKED = "Locate the cup in this image and output the bbox coordinates in JSON format."
Turns = tuple[str, str]


def talk(*turns: str, image: str = "desk.png") -> dict[str, Any]:
    roles = ("user", "assistant") * (len(turns) // 2)
    said = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    said[0]["content"] = "<image>" + said[0]["content"]
    return {"messages": said, "images": [image]}


def converted(folder: Path, *records: dict[str, Any], frame: str) -> list[Any]:
    pictures(folder)
    result = convert(write_lines(folder / "in.jsonl", *records), folder / "out", "--text-boxes", frame)
    assert result.exit_code == 0, result.stderr
    return list(read_entries(folder / "out" / "data.jsonl"))


SPELLINGS: dict[str, tuple[Turns, str, str]] = {
    "qwen object": ((ASKED, '{\n"bbox_2d": [16, 30, 96, 90]\n}'), "pixels", "the cup"),
    "qwen list": (("Find it.", '[{"bbox_2d": [16, 30, 96, 90], "label": "cup"}]'), "pixels", "cup"),
    "fenced": (("Find it.", '```json\n[\n\t{"bbox_2d": [16, 30, 96, 90], "label": "cup"}\n]\n```'), "pixels", "cup"),
    "thousandths": (("Find it.", '[{"bbox_2d": [100, 250, 600, 750], "label": "cup"}]'), "norm1000", "cup"),
    "bare list": (
        ("Please provide the bounding box coordinate of the region this sentence describes: the cup.", "[16,30,96,90]"),
        "pixels",
        "the cup",
    ),
    "shares": (("Detect the bounding box of the cup.", "[0.1, 0.25, 0.6, 0.75]"), "norm1", "the cup"),
    "padded": (("Detect the bounding box of the cup.", "[0.1, 0.3125, 0.6, 0.6875]"), "padded1", "the cup"),
    "tags": (
        (
            "Find <|object_ref_start|>the cup<|object_ref_end|>",
            "<|box_start|>(100,250),(600,750)<|box_end|>",
        ),
        "norm1000",
        "the cup",
    ),
    "tags in the answer": (("Where?", "<ref>cup</ref><box>(100,250),(600,750)</box>"), "norm1000", "cup"),
    "list in tags": (("Where?", "<ref>cup</ref><box>[[100, 250, 600, 750]]</box>"), "norm1000", "cup"),
    "location tokens": (("detect cup", "<loc0256><loc0102><loc0768><loc0614> cup"), "pixels", "cup"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_box_in_any_spelling_becomes_a_record_that_can_be_scored(tmp_path: Path, name: str) -> None:
    turns, frame, phrase = SPELLINGS[name]
    [record] = converted(tmp_path, talk(*turns), frame=frame)
    assert isinstance(record, Record) and record.boxes is not None
    assert record.boxes[0] == pytest.approx(BOX, abs=0.2 if name == "location tokens" else 1e-3)
    assert (record.text, record.labels, record.kind) == (phrase, [phrase], "ground")
    words = turns[0].replace("<|object_ref_start|>", "").replace("<|object_ref_end|>", "")
    assert record.prompt(get_family("qwen3_vl")) == words


def test_two_boxes_keep_their_names_and_an_absent_object_its_question(tmp_path: Path) -> None:
    both = '[{"bbox_2d": [16, 30, 96, 90], "label": "cup"}, {"bbox_2d": [1, 2, 30, 40], "label": "mug"}]'
    found, absent = converted(tmp_path, talk("Detect all.", both), talk(ASKED, "[]"), frame="pixels")
    assert (found.labels, found.boxes.tolist()) == (["cup", "mug"], [BOX, [1, 2, 30, 40]])
    assert (absent.text, absent.boxes.shape, absent.request) == ("the cup", (0, 4), ASKED)


def test_boxes_in_a_sentence_and_in_later_turns_become_places(tmp_path: Path) -> None:
    turns = ("What is in the box [16, 30, 96, 90]?", "A cup.", "And where is the mug?", "At [1, 2, 30, 40], I think.")
    [dialogue] = converted(tmp_path, talk(*turns), frame="pixels")
    assert [list(place.numbers) for place in dialogue.places] == [BOX, [1, 2, 30, 40]]
    assert dialogue.turns[3].parts[0] == "At "
    assert dialogue.turns[3].parts[2] == ", I think."


def test_what_a_family_then_writes_is_in_its_own_frame(tmp_path: Path) -> None:
    [record] = converted(tmp_path, talk(ASKED, '{"bbox_2d": [16, 30, 96, 90]}'), frame="pixels")
    written = encode(record.boxes, record.labels, Geometry(160, 120, 160, 128), get_family("qwen3_vl").box_format)
    assert json.loads(written) == [{"bbox_2d": [100, 250, 600, 750], "label": "the cup"}]


def test_y_comes_first_under_its_own_name(tmp_path: Path) -> None:
    turns = talk("Find the cup and the mug.", 'The cup: {"box_2d": [250, 100, 750, 600]}. No mug.')
    [dialogue] = converted(tmp_path, turns, frame="norm1000")
    assert [list(place.numbers) for place in dialogue.places] == [BOX]


def test_a_question_with_one_answer_is_read_like_a_conversation(tmp_path: Path) -> None:
    asked = {
        "image": "desk.png",
        "question": ASKED,
        "answer": '{"bbox_2d": [16, 30, 96, 90]}',
        "id": 4,
        "meta": {"a": 1},
    }
    [record] = converted(tmp_path, asked, frame="pixels")
    assert (record.boxes.tolist(), record.id, record.meta["a"]) == ([BOX], "4", 1)


def test_roboflow_s_prefix_and_suffix(tmp_path: Path) -> None:
    as_json = json.dumps([{"bbox_2d": BOX, "label": "cup"}])
    asked = {"image": "desk.png", "prefix": "detect cup", "suffix": as_json}
    both = {"image": "desk.png", "prefix": "detect cup ; mug", "suffix": "<loc0256><loc0102><loc0768><loc0614> cup"}
    first, second = converted(tmp_path, asked, both, frame="pixels")
    assert (first.boxes.tolist(), first.labels) == ([BOX], ["cup"])
    assert second.boxes.tolist() == [pytest.approx(BOX, abs=0.2)]


NUMBERS = ("Which numbers are on the dial?", "[1, 2, 3, 4]")


def test_numbers_that_are_no_boxes_stay_text(tmp_path: Path) -> None:
    speed = ("Where is it and how fast?", '{"speed": "[1, 2]", "rates": [1, 2, 3]}')
    dial, other = converted(tmp_path, talk(*NUMBERS), talk(*speed), frame="pixels")
    assert (dial.answers, other.answers) == ([NUMBERS[1]], [speed[1]])


# --- auto: only what the whole file proves -----------------------------------------------------------------


def answer(*box: float) -> dict[str, Any]:
    return talk("Where is the cup?", json.dumps([{"bbox_2d": list(box), "label": "cup"}]))


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(100, 250, 600, 750), (16, 30, 96, 90)], [16, 30, 96, 90]),  # 600 is outside of 160 pixels
        ([(0.1, 0.25, 0.6, 0.75), (0.0, 0.05, 0.5, 0.5)], [16, 30, 96, 90]),  # .05 would be in the padding
    ],
)
def test_auto_takes_the_one_frame_in_which_all_boxes_fit(tmp_path: Path, boxes: Any, expected: list[float]) -> None:
    first, *_ = converted(tmp_path, *(answer(*box) for box in boxes), frame="auto")
    assert first.boxes.tolist() == [pytest.approx(expected)]


def test_auto_knows_pixels_from_a_large_picture(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1500)).save(tmp_path / "wide.png")
    large = talk("Where is the cup?", '[{"bbox_2d": [1200, 30, 1900, 90], "label": "cup"}]', image="wide.png")
    small, _ = converted(tmp_path, answer(*BOX), large, frame="auto")
    assert small.boxes.tolist() == [BOX]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([BOX], "can be pixels or norm1000"),
        ([(0.1, 0.3, 0.6, 0.7)], "can be norm1 or padded1"),
        ([(100, 250, 600, 750), (0.1, 0.3, 0.6, 0.7)], "fit in no frame"),
        ([(96, 90, 16, 30)], "fit in no frame"),
    ],
)
def test_auto_refuses_what_the_file_does_not_prove(tmp_path: Path, boxes: Any, message: str) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "in.jsonl", *(answer(*box) for box in boxes))
    result = convert(path, tmp_path / "out", "--text-boxes", "auto")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: the {len(boxes)} boxes written as text, such as [")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("record", "frame", "message"),
    [
        (answer(16, 30, 960, 90), "pixels", "bbox [16.0, 30.0, 960.0, 90.0] leaves the 160x120 image"),
        (answer(16, 30, 1960, 90), "norm1000", "is not between 0 and 1000, as --text-boxes norm1000 says"),
        (answer(16, 30, 96, 90), "norm1", "is not between 0 and 1, as --text-boxes norm1 says"),
        (answer(*BOX) | {"images": ["desk.png", "shelf.png"]}, "pixels", "about 2 pictures: they do not say which"),
    ],
)
def test_a_box_that_does_not_belong_is_an_error_of_its_line(
    tmp_path: Path, record: dict[str, Any], frame: str, message: str
) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "in.jsonl", record)
    result = convert(path, tmp_path / "out", "--text-boxes", frame)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}:1: ")
    assert message in result.stderr


def test_llava_in_one_json_file_and_a_format_without_conversations(tmp_path: Path) -> None:
    pictures(tmp_path)
    said = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": '{"bbox_2d": [16, 30, 96, 90]}'}]
    path = write_json(tmp_path / "llava.json", [{"id": "7", "image": "desk.png", "conversations": said}])
    assert convert(path, tmp_path / "out", "--text-boxes", "pixels").exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert (line["objects"], line["id"]) == ({"ref": ["the cup"], "bbox": [BOX]}, "7")
    other = write_json(tmp_path / "coco.json", {"images": [], "annotations": [], "categories": []})
    refused = convert(other, tmp_path / "x", "--text-boxes", "pixels")
    assert refused.stderr == (
        "error: --text-boxes means nothing for the format coco\n"
        "hint: it takes --image-root, --allow-download, --orientation, --absent, --crowd\n"
    )


# --- never learned in silence ---------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_text_that_stays_text_is_remarked_checked_and_not_trained_on(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "in.jsonl", talk(*NUMBERS), answer(*BOX))
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 0
    assert "records with boxes written as text, which stay text (--text-boxes says what frame they are in): 1" in (
        result.stderr
    )
    checked = run("data", "check", path, "--json")
    [finding] = [found for found in json.loads(checked.stdout)["findings"] if found["rule"] == "text-box"]
    assert (finding["source"], finding["level"]) == (f"{path}:2", "warning")
    assert finding["message"] == "the box '[16, 30, 96, 90]' is written as text"
    model = Path(__file__).parents[2] / "examples" / "tiny" / "model"
    train = ("train", "--checkpoint", model, "--data", path, "--output", tmp_path / "adapter", "--dry-run")
    refused = run(*train)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: in.jsonl:2: the box [16, 30, 96, 90] stands as text and would be learned")
    assert "so in 1 of 2 records\nhint: edgetune data convert --text-boxes FRAME" in refused.stderr
    assert run(*train, "--allow-text-boxes").exit_code == 0


PIECES = st.sampled_from(
    [
        *("[", "]", "(16,30)", ",", "<ref>", "cup", "</ref>", "<box>", "</box>", "<bbox>", "<ref-object>"),
        *('{"bbox_2d": ', '"label": "cup"', "}", "<loc0001>" * 4, "```json", "where", " ", "<image>", "1e999"),
        "[16, 30, 96, 90]",
    ]
)


@settings(deadline=None, max_examples=100)
@given(asked=st.lists(PIECES, min_size=1, max_size=8), said=st.lists(PIECES, min_size=1, max_size=12))
def test_any_text_is_a_record_or_an_error(asked: list[str], said: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder))
        path = write_lines(Path(folder) / "in.jsonl", talk("".join(asked), "".join(said)))
        for frame in TEXT_FRAMES:
            with contextlib.suppress(InputError):
                load(path, options=ReadSettings(text_boxes=frame))
