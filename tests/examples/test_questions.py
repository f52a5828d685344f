"""Questions about scenes, answered here from the layout by other means, and their balance."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

import make_data
import questions
import scenes
from edgetune_runtime.records import Record, read_records

DRAWN = [scene for scene, _ in make_data.draw("train", "night", 0, 200, 1)]


def thing(name: str, box: tuple[float, float, float, float]) -> scenes.Thing:
    kind = next(index for index, entry in enumerate(scenes.OBJECTS) if entry["name"] == name)
    return scenes.Thing(kind, box, mirrored=False, brightness=1.0)


def scene(*things: scenes.Thing) -> scenes.Scene:
    return scenes.Scene((400, 200), 0, (0, 0, 1, 1), False, list(things))


def asked(*things: scenes.Thing) -> dict[str, str]:
    return {question.text: question.answer for question in questions.questions(scene(*things))}


def test_a_scene_written_by_hand() -> None:
    found = asked(
        thing("lemon", (0, 80, 40, 120)), thing("frog", (200, 0, 240, 40)), thing("whale", (300, 90, 340, 130))
    )
    assert found["How many objects are in the picture?"] == "3"
    assert found["What is left of the frog?"] == "the lemon"
    assert found["What is right of the frog?"] == "the whale"
    assert found["What colour is the lemon?"] == "yellow"
    assert "What is left of the whale?" not in found  # two are
    assert "What is right of the whale?" not in found  # none is
    assert "What is above the whale?" not in found  # the lemon is nearly level


def test_twins_are_not_asked_about() -> None:
    found = asked(thing("lemon", (0, 0, 40, 40)), thing("lemon", (300, 150, 340, 190)))
    assert set(found) == {"How many objects are in the picture?"}


@pytest.mark.parametrize(
    ("name", "colour"),
    [("lemon", "yellow"), ("tomato", "red"), ("cactus", "green"), ("whale", "blue"), ("grapes", "purple")],
)
def test_colours_are_those_that_everybody_names(name: str, colour: str) -> None:
    assert questions.colours()[thing(name, (0, 0, 1, 1)).kind] == colour


def test_an_object_of_many_colours_has_none() -> None:
    assert questions.colours()[thing("rainbow", (0, 0, 1, 1)).kind] is None


def test_answers_are_even_and_kinds_are_in_turn() -> None:
    chosen = [question for mine in questions.choose(DRAWN, 3, random.Random(0)) for question in mine]
    for asks, most in ((questions.COUNT, 0.3), (questions.COLOUR, 0.2), (questions.PLACE, 0.05)):
        answers = Counter(question.answer for question in chosen if question.asks == asks)
        assert answers.total() > 100
        assert max(answers.values()) < most * answers.total(), asks


def test_a_place_is_the_only_object_on_that_side() -> None:
    for drawn in DRAWN[:50]:
        by_name = {thing.name: thing.centre for thing in drawn.things}
        for question in questions.questions(drawn):
            if question.asks != questions.PLACE:
                continue
            word, _, anchor = question.text.removeprefix("What is ").removesuffix("?").partition(" the ")
            axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[word]
            ahead = [
                name
                for name, centre in ((other.name, other.centre) for other in drawn.things)
                if name != anchor and (centre[axis] - by_name[anchor][axis]) * sign > 0
            ]
            assert ahead == [question.answer.removeprefix("the ")]


def records(folder: Path, *options: str) -> list[Record]:
    make_data.main(["--output", str(folder), "--domain", "night", "--test", "4", "--queries", "2", *options])
    return read_records(folder / "test.jsonl")


def test_they_are_added_to_the_same_scenes_and_say_what_they_ask(tmp_path: Path) -> None:
    plain, more = records(tmp_path / "a"), records(tmp_path / "b", "--questions", "3")
    added = [record for record in more if record.meta]
    assert [record.text for record in more if not record.meta] == [record.text for record in plain]
    assert {record.meta["asks"] for record in added} == {questions.COUNT, questions.PLACE, questions.COLOUR}
    assert all(record.kind == "vqa" for record in added)
    for number in range(4):
        name = f"images/test_{number:05d}.jpg"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
