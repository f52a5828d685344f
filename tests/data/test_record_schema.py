"""The JSON Schema and the runtime's reader accept the same lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgetune_data.formats.canonical import record_schema
from edgetune_runtime.records.forms import FormError, read_form

SCHEMA = Draft202012Validator(record_schema())
TURNS = [{"role": "user", "content": "<image>Find <ref-object>"}, {"role": "assistant", "content": "<bbox>"}]
OBJECTS = {"ref": ["cup"], "bbox": [[1, 2, 3, 4]]}
SAID = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]

GOOD: list[dict[str, Any]] = [
    {"image": "a.jpg", "text": "cup", "bbox": [1, 2, 3.5, 4]},
    {"image": "a.jpg", "text": "cup", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": ["a", "b"], "id": "x"},
    {"image": "a.jpg", "text": "cup", "bbox": [], "label": "cup", "id": 3, "meta": {"camera": 1}},
    {"image": "a.jpg", "text": "A cup on a desk.", "id": 3},
    {"image": "a.jpg", "question": "What?", "answer": "A cup."},
    {"image": "a.jpg", "question": "What?", "answer": "A cup.", "source": "instances.json#3/cup"},
    {"image": "a.jpg", "question": "What?", "answer": ["a", "b"]},
    {"messages": TURNS, "images": ["a.jpg"], "objects": OBJECTS},
    {"messages": TURNS, "images": ["a.jpg"], "objects": OBJECTS | {"image_id": [0]}},
    {"messages": [{"role": "system", "content": "S"}, TURNS[0], TURNS[1] | {"loss": True}], "images": ["a.jpg"]}
    | {"objects": OBJECTS},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    {"image": "a.jpg", "conversations": SAID},
    {"conversations": SAID, "id": "1"},
]
BAD: list[dict[str, Any]] = [
    {},
    {"image": "a.jpg"},
    {"image": "", "text": "cup", "bbox": []},
    {"image": "a.jpg", "text": " ", "bbox": []},
    {"image": "a.jpg", "text": "cup", "bbox": None},
    {"image": "a.jpg", "text": " "},
    {"text": "A cup."},
    {"image": "a.jpg", "text": "cup", "label": "cup"},
    {"image": "a.jpg", "text": "A cup.", "source": ""},
    {"image": "a.jpg", "text": "A cup.", "source": 3},
    {"image": "a.jpg", "text": "cup", "bbox": [1, 2, 3]},
    {"image": "a.jpg", "text": "cup", "bbox": [[1, 2, 3, "4"]]},
    {"image": "a.jpg", "text": "cup", "bbox": [], "label": 3},
    {"image": "a.jpg", "text": "cup", "bbox": [], "labl": "cup"},
    {"image": "a.jpg", "text": "cup", "bbox": [], "id": True},
    {"image": "a.jpg", "text": "cup", "bbox": [], "meta": []},
    {"image": "a.jpg", "question": "What?", "answer": []},
    {"image": "a.jpg", "question": "What?", "answer": ""},
    {"image": "a.jpg", "question": "What?", "answer": 3},
    {"messages": []},
    {"messages": [TURNS[0]]},
    {"messages": [TURNS[0] | {"role": "tool"}, TURNS[1]], "images": ["a.jpg"], "objects": OBJECTS},
    {"messages": [TURNS[0] | {"name": "Ada"}, TURNS[1]], "images": ["a.jpg"], "objects": OBJECTS},
    {"messages": TURNS, "images": "a.jpg", "objects": OBJECTS},
    {"messages": TURNS, "images": ["a.jpg"], "objects": {"ref": ["cup"], "bbox": [[1, 2, 3]]}},
    {"messages": TURNS, "images": ["a.jpg"], "objects": OBJECTS | {"bbox_type": "real"}},
    {"messages": TURNS, "images": ["a.jpg"], "objects": {"ref": ["cup"]}},
    {"messages": TURNS, "images": ["a.jpg"], "objects": OBJECTS | {"image_id": [-1]}},
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "Hi"}]},
]


def readable(value: dict[str, Any]) -> bool:
    try:
        read_form(value)
    except FormError:
        return False
    return True


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(record_schema())


@pytest.mark.parametrize("value", GOOD)
def test_both_accept(value: dict[str, Any]) -> None:
    assert [error.message for error in SCHEMA.iter_errors(value)] == []
    assert readable(value)


@pytest.mark.parametrize("value", BAD)
def test_both_refuse(value: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(value)
    assert not readable(value)


NUMBERS = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
WORDS = st.text(max_size=6)
BOXES = st.lists(NUMBERS, min_size=3, max_size=4) | st.lists(st.lists(NUMBERS, min_size=3, max_size=4), max_size=2)
ANY = WORDS | NUMBERS | st.none() | st.booleans() | BOXES | st.lists(WORDS, max_size=2) | st.dictionaries(WORDS, WORDS)


@given(
    st.fixed_dictionaries(
        {"image": WORDS | ANY},
        optional={
            "text": WORDS,
            "bbox": BOXES | ANY,
            "label": ANY,
            "id": ANY,
            "meta": ANY,
            "question": WORDS,
            "answer": ANY,
        },
    )
)
def test_what_the_reader_accepts_is_valid(value: dict[str, Any]) -> None:
    if readable(value):
        assert [error.message for error in SCHEMA.iter_errors(value)] == []


def test_the_documented_schema_is_the_packaged_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert record_schema()["$id"] in page
