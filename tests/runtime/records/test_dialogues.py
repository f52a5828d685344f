"""Conversations in data files: which placeholder stands for what, and which turns are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune_runtime.errors import InputError
from edgetune_runtime.records import AnyRecord, read_entries, read_records
from edgetune_runtime.records.dialogue import Dialogue, Name, Picture, Place
from lines import ask, ground, pictures, swift


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with pictures."""
    return pictures(tmp_path)


def entries(folder: Path, *lines: Any) -> list[AnyRecord]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_entries(path)


def test_streams_count_over_all_turns_each_on_its_own(folder: Path) -> None:
    talk = ask(
        ("system", "You see well."),
        ("user", "Compare <image> and <image>. Where is <ref-object>?"),
        ("assistant", "At <bbox>, beside <ref-object>.", False),
        ("user", "And in <image>\n what is at <bbox>?"),
        ("assistant", "<ref-object>, its handle at <bbox>"),
        images=("pictures/a.png",) * 3,
    )
    talk["objects"] = {
        "ref": ["the cup", "a mug", "a jug"],
        "bbox": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]],
        "image_id": [1, 2, 2],
    }
    [entry] = entries(folder, {**talk, "id": 5, "meta": {"by": "hand"}})
    assert isinstance(entry, Dialogue)
    assert [turn.role for turn in entry.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.learned for turn in entry.turns] == [False, False, False, False, True]
    assert entry.turns[1].parts == (
        "Compare ", Picture(0), "and ", Picture(1), ". Where is ", Name("the cup"), "?",
    )  # fmt: skip
    assert entry.turns[2].parts == ("At ", Place((1, 2, 3, 4), 1), ", beside ", Name("a mug"), ".")
    assert entry.turns[3].parts == ("And in ", Picture(2), "what is at ", Place((5, 6, 7, 8), 2), "?")
    assert entry.turns[4].parts == (Name("a jug"), ", its handle at ", Place((9, 10), 2))
    assert (entry.id, entry.meta, entry.source) == ("5", {"by": "hand"}, "data.jsonl:1")
    assert len(entry.images) == 3 and len(entry.places) == 3


def test_pictures_without_a_placeholder_come_first(folder: Path) -> None:
    talk = ask(
        ("user", "Look at <image>."), ("assistant", "Yes."), ("user", "Well?"), ("assistant", "So."),
        images=("pictures/a.png",) * 3,
    )  # fmt: skip
    [entry] = entries(folder, talk)
    assert isinstance(entry, Dialogue)
    assert entry.turns[0].parts == (Picture(0), Picture(1), "Look at ", Picture(2), ".")


def test_text_alone_is_a_dialogue(folder: Path) -> None:
    [entry] = entries(folder, {"messages": ask(("user", "Hi"), ("assistant", "Hello"))["messages"]})
    assert isinstance(entry, Dialogue) and entry.images == () and entry.turns[1].parts == ("Hello",)


def test_an_answer_of_words_and_boxes_is_a_dialogue(folder: Path) -> None:
    [entry] = entries(folder, swift("<image>Find it", "It is at <bbox>", ref=[], bbox=[[1, 2, 3, 4]]))
    assert isinstance(entry, Dialogue)
    assert entry.turns[1].parts == ("It is at ", Place((1, 2, 3, 4), 0))


def test_a_dialogue_has_no_score(folder: Path) -> None:
    turns = (("user", "Hi"), ("assistant", "Hello"), ("user", "Well?"), ("assistant", "So."))
    with pytest.raises(InputError, match=r"data\.jsonl:2: a conversation of 4 turns about 1 pictures has no score"):
        entries(folder, ground(), ask(*turns))
        read_records(folder / "data.jsonl")
