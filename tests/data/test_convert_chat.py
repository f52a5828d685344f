"""OpenAI chat and VLM-R1: pictures inside, what is another kind of training, and answers that are boxes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.converting import convert, lines, pictures, write_lines
from edgetune_data.formats import sniff


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (160, 120), "red").save(stream, "PNG")
    return stream.getvalue()


def chat(url: str, answer: Any = "A desk.", **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | more


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", ""])
def test_a_picture_inside_a_message_is_written_as_a_file(tmp_path: Path, prefix: str) -> None:
    data = picture()
    path = write_lines(tmp_path / "a.jsonl", chat(prefix + base64.b64encode(data).decode()))
    assert sniff(path).name == "openai"
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert [turn["content"] for turn in line["messages"]] == ["What is it?<image>", "A desk."]
    assert (tmp_path / "out" / line["images"][0]).read_bytes() == data


def test_an_address_is_fetched_only_on_request(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", chat("https://example.org/a.png"))
    result = convert(path, tmp_path / "out")
    assert result.stderr == (
        f"error: {path}:1: the picture is at https://example.org/a.png, and nothing is fetched\n"
        "hint: edgetune data convert --allow-download\n"
    )


def test_boxes_in_answers_are_told_and_converted(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "a.jsonl", chat("desk.png", '{"bbox_2d": [16, 30, 96, 90], "label": "cup"}'))
    assert "records with boxes written as text" in convert(path, tmp_path / "text").stderr
    assert convert(path, tmp_path / "out", "--text-boxes", "pixels").exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert line["objects"]["bbox"] == [[16, 30, 96, 90]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (chat("desk.png", tools=[{"type": "function"}]), "'tools' is not supported"),
        (chat("desk.png") | {"messages": []}, "'messages' must be a list of objects, not empty"),
        (
            {"messages": [*chat("desk.png")["messages"], {"role": "tool", "content": "3"}]},
            "role 'tool' is not supported",
        ),
        (
            {"messages": [chat("desk.png")["messages"][0], {"role": "assistant", "tool_calls": [{}]}]},
            "'tool_calls' in a message is not supported",
        ),
        (
            {"messages": [chat("desk.png")["messages"][0], {"role": "assistant", "content": "x", "weight": 0.5}]},
            "'weight' 0.5 is not supported",
        ),
        (
            {"messages": [chat("desk.png")["messages"][0], {"role": "assistant", "content": None, "refusal": "No."}]},
            "a message is a refusal without content",
        ),
        (chat("gone.png"), "gone.png: no such image file"),
        (chat("data:image/png;base64,aGVsbG8="), "the data URI: not an image"),
    ],
)
def test_what_cannot_be_read_is_told_at_its_line(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "a.jsonl", chat("desk.png"), record)
    result = convert(path, tmp_path / "out", "--format", "openai")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}:2: ")
    assert message in result.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("solution", "options", "expected"),
    [
        ([0.1, 0.25, 0.6, 0.75], ("--box-format", "xyxy-norm1"), [[16, 30, 96, 90]]),
        ([[16, 30, 96, 90], ["1", "2", "3", "4"]], (), [[16, 30, 96, 90], [1, 2, 3, 4]]),
        ("<answer> [16, 30, 96, 90] </answer>", ("--text-boxes", "pixels"), [[16, 30, 96, 90]]),
    ],
)
def test_solutions_of_vlm_r1_that_are_boxes(tmp_path: Path, solution: Any, options: Any, expected: Any) -> None:
    pictures(tmp_path)
    path = write_lines(
        tmp_path / "a.jsonl", {"image": "desk.png", "problem": "Where is the cup?", "solution": solution}
    )
    assert sniff(path).name == "vlm-r1"
    result = convert(path, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert (line["bbox"] if "bbox" in line else line["objects"]["bbox"]) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solution": [0.1, 0.2, 0.5, 0.9]}, "bbox [0.1, 0.2, 0.5, 0.9] lies within one pixel"),
        ({"solution": ["a", "b", "c", "d"]}, "'solution' ['a', 'b', 'c', 'd'] is not read"),
        ({"solution": ["1_0", "2", "3", "4"]}, "'solution' ['1_0', '2', '3', '4'] is not read"),
        ({"solution": 3}, "'solution' 3 is not read"),
        (
            {"solution": [{"bbox_2d": [16, 30, 96, 90], "label": ["cup"]}]},
            "the label of a box is a text, got ['cup']",
        ),
        ({"solution": [1, 2, 3]}, "a bbox is four numbers"),
        ({"solution": [1, 2, 300, 4]}, "leaves the 160x120 image"),
        ({"image": ["desk.png", "shelf.png"]}, "2 pictures"),
        ({"problem": None}, "missing key 'problem'"),
        ({"meta": 3}, "'meta' must be an object, got 3"),
    ],
)
def test_what_is_wrong_with_a_record_of_vlm_r1_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pictures(tmp_path)
    record = {"image": "desk.png", "problem": "the cup", "solution": [16, 30, 96, 90]} | changes
    path = write_lines(tmp_path / "a.jsonl", record)
    result = convert(path, tmp_path / "out", "--format", "vlm-r1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}:1: ")
    assert message in result.stderr.splitlines()[0]
