"""Answers of a trained model within the grammar: those that it gives freely, in fewer passes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.answer import Answer
from edgetune_runtime.errors import Cancelled, InputError
from edgetune_runtime.records import Record, read_entries
from edgetune_runtime.session import Session
from shared import once


def _float_bundle(folder: Path) -> None:
    from builders import TINY_MODEL
    from edgetune.cli import cli

    options = ["--precision", "fp32", "--check", "none"]
    cli.main(["export", "--checkpoint", str(TINY_MODEL), "--output", str(folder), *options], standalone_mode=False)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The trained tiny model in float32: rounded activations choose otherwise where a pass is wider, in close cases."""
    with Session.load(once(tmp_path_factory, "tiny_float_bundle", _float_bundle), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def asked(tiny_scenes: Path) -> list[tuple[Path, str]]:
    """Pictures, and phrases of what is in them or is not."""
    entries = read_entries(tiny_scenes)
    return [(entry.image, entry.text) for entry in entries if isinstance(entry, Record) and entry.boxes is not None]


def test_well_formed_answers_are_the_free_ones(session: Session, asked: list[tuple[Path, str]]) -> None:
    found = 0
    for image, phrase in asked:
        words = session.request(phrase)
        free, held = session.answer(image, words, constrained=False), session.answer(image, words)
        assert free.problem is not None or held.text == free.text
        assert held.status != "unparsed"
        assert free.timings.passes == free.timings.tokens
        assert held.timings.passes <= 15 < free.timings.tokens or held.refused
        found += len(held.detections)
        for mine, theirs in zip(held.detections, free.detections, strict=True):
            # Of legal tokens alone, a score is never lower.
            assert mine.box == theirs.box and mine.score is not None and theirs.score is not None
            assert mine.score >= theirs.score - 1e-4
    assert found > 12


def test_phrases_about_one_picture_are_answered_side_by_side(session: Session, asked: list[tuple[Path, str]]) -> None:
    image = asked[0][0]
    words = [session.request(phrase) for _, phrase in asked[:18]]  # more than are written side by side
    alone = [session.answer(image, each) for each in words]
    together = session.answer(image, words)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert {answer.status for answer in together} == {"found", "refused"}
    assert [answer.timings.tokens for answer in together] == [answer.timings.tokens for answer in alone]
    # Passes are shared: all sixteen take as many as the longest alone, and some tokens read in vain.
    assert together[0].timings.passes <= 20
    assert together[1].timings.known > 0 and together[1].timings.vision == 0
    # Afterwards the session goes on with one.
    assert session.answer(image, words[0]).text == alone[0].text


def test_long_names_side_by_side_are_read_anew_when_there_is_no_room(
    session: Session, asked: list[tuple[Path, str]]
) -> None:
    image = asked[0][0]
    words = [session.request(f"{phrase}, {'or whatever looks like that, ' * 12}") for _, phrase in asked[:6]]
    alone = [session.answer(image, each, max_new_tokens=200).text for each in words]
    assert [answer.text for answer in session.answer(image, words, max_new_tokens=200)] == alone


def test_the_answer_about_the_frame_before_is_read_at_once(session: Session, asked: list[tuple[Path, str]]) -> None:
    image, phrase = asked[0]
    words, picture = session.request(phrase), Image.open(image).convert("RGB")
    first = session.answer(picture, words)
    again = session.answer(picture, words, earlier=[first])
    assert again.text == first.text and again.timings.passes == 1
    assert again.detections[0].score == pytest.approx(first.detections[0].score, abs=1e-4)

    moved = Image.fromarray(np.roll(np.asarray(picture), 20, axis=1))
    expected = session.answer(moved, words)
    assert expected.detections != first.detections
    found = session.answer(moved, words, earlier=[first])
    assert found.text == expected.text and found.timings.passes <= 15


def test_what_an_earlier_answer_says_changes_no_answer(session: Session, asked: list[tuple[Path, str]]) -> None:
    image, phrase = asked[0]
    words = session.request(phrase)
    first = session.answer(image, words)
    for text in ("", "[]", "nothing of the kind", first.text[:20], first.text.replace(phrase, "a cow"), first.text * 2):
        earlier = Answer(text=text, detections=[], complete=True, problem=None, refused=False, timings=first.timings)
        assert session.answer(image, words, earlier=[earlier]).text == first.text, text


def test_a_short_answer_breaks_off_as_a_free_one(session: Session, asked: list[tuple[Path, str]]) -> None:
    image, phrase = next(each for each in asked if session.ground(*each))
    for most in (1, 5, 9, 20, 30):
        answer = session.answer(image, session.request(phrase), max_new_tokens=most)
        free = session.answer(image, session.request(phrase), max_new_tokens=most, constrained=False)
        assert answer.text == free.text and answer.timings.tokens == most and not answer.complete
    with pytest.raises(InputError, match="max_new_tokens must be a whole number of at least 1"):
        session.answer(image, session.request(phrase), max_new_tokens=0)


def test_answers_side_by_side_can_be_cancelled(session: Session, asked: list[tuple[Path, str]]) -> None:
    gone = threading.Event()
    gone.set()
    words = [session.request(phrase) for _, phrase in asked[:3]]
    with pytest.raises(Cancelled):
        session.answer(asked[0][0], words, cancel=gone)
    assert len(session.answer(asked[0][0], words)) == 3


def test_rounded_activations_choose_the_same_but_for_close_calls(
    tiny_bundle: Path, asked: list[tuple[Path, str]]
) -> None:
    with Session.load(tiny_bundle, threads=1) as session:
        for image, phrase in asked[:12]:
            words = session.request(phrase)
            free, held = session.answer(image, words, constrained=False), session.answer(image, words)
            for mine, theirs in zip(held.detections, free.detections, strict=True):
                np.testing.assert_allclose(mine.box, theirs.box, atol=4)  # pixels: two or three steps of a number
