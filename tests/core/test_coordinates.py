"""Where coordinates stand in an answer, in text and tokens, and where each choice leads."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from builders import TINY_MODEL
from edgetune_core.coordinates import END, SIGNS, locate, steps_of
from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.geometry import Geometry, frame_size, step_in_pixels
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES, Family, get_family
from edgetune_runtime.records import Record
from edgetune_runtime.tokens import TextTokenizer

GEOMETRY = Geometry(640, 480, 672, 504)
STYLES = list({family.box_format.style: family for family in FAMILIES.values()}.values())
labels = st.text(string.ascii_letters + string.digits + " .,-'", min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x1, x2 = sorted(draw(st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, 48), min_size=2, max_size=2, unique=True)))
    return [10.0 * x1, 10.0 * y1, 10.0 * x2, 10.0 * y2]


def record(found: list[list[float]], names: list[str]) -> Record:
    return Record(Path("a.png"), "x", np.array(found, np.float32).reshape(-1, 4), names, [], None, "a:1")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(TINY_MODEL / "tokenizer.json")


@pytest.mark.parametrize("family", STYLES, ids=lambda family: family.box_format.style)
@given(found=st.lists(boxes(), min_size=1, max_size=3), data=st.data())
def test_the_spans_hold_the_numbers(family: Family, found: list[list[float]], data: st.DataObject) -> None:
    names = data.draw(st.lists(labels, min_size=len(found), max_size=len(found)))
    text, spans = grounding.lay_out(found, names, GEOMETRY, family.box_format)
    assert text == grounding.encode(found, names, GEOMETRY, family.box_format)
    for start, end in (span for box in spans for span in box):
        around = text[start - 1] + text[end]
        assert not set(around) & set(SIGNS), "a span cuts a number"
    written = [[float(text[start:end]) for start, end in box] for box in spans]
    back = grounding.to_image(written, GEOMETRY, family.box_format)
    assert np.abs(back - np.array(found)).max() <= step_in_pixels(GEOMETRY, family.box_format).max() / 2 + 1e-9
    parsed = grounding.parse(text, GEOMETRY, family.box_format)
    assert np.allclose([detection.box for detection in parsed.detections], back)


@pytest.mark.parametrize("family", STYLES, ids=lambda family: family.box_format.style)
@given(found=st.lists(boxes(), min_size=1, max_size=3), data=st.data())
def test_the_tokens_spell_the_numbers(
    family: Family, tokenizer: TextTokenizer, found: list[list[float]], data: st.DataObject
) -> None:
    names = data.draw(st.lists(labels, min_size=len(found), max_size=len(found)))
    ids, located = locate(record(found, names), GEOMETRY, family, tokenizer)
    text, spans = grounding.lay_out(found, names, GEOMETRY, family.box_format)
    assert ids == tokenizer.encode(family.chat.before_answer + text, after=family.chat.suffix)
    size = frame_size(GEOMETRY, family.box_format)
    for box, places in zip(located, spans, strict=True):
        for corner, (number, (start, end)) in enumerate(zip(box, places, strict=True)):
            signs = [tokenizer.decode([ids[number.start + i]]) for i in range(end - start)]
            assert "".join(signs) == text[start:end]
            assert number.value == pytest.approx(float(text[start:end]) / size[corner])
            assert [SIGNS[choice] for choice in number.steps.chosen[:-1]] == signs
            assert number.steps.chosen[-1] == END
            assert ids[number.start + end - start] == number.end_id


@pytest.mark.parametrize(("limit", "places"), [(1000, 0), (28, 0), (1204, 0), (100, 2)])
@given(data=st.data())
def test_each_choice_leads_to_the_nearest_number_it_allows(limit: int, places: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, limit))
    texts = {value: f"{value / 10**places:.{places}f}" for value in range(limit + 1)}
    steps = steps_of(number, limit, places)
    assert [*(SIGNS[choice] for choice in steps.chosen[:-1])] == list(texts[number])
    for row in range(len(texts[number]) + 1):
        prefix = texts[number][:row]
        for choice in range(END + 1):
            if choice == END:
                allowed = [value for value, text in texts.items() if text == prefix]
            else:
                allowed = [value for value, text in texts.items() if text.startswith(prefix + SIGNS[choice])]
            drift = steps.drift[row, choice]
            if not allowed:
                assert np.isnan(drift)
            else:
                assert abs(drift) * limit == pytest.approx(min(abs(value - number) for value in allowed))
                assert round(number + drift * limit) in allowed
        assert steps.drift[row, steps.chosen[row]] == 0


def test_examples_worked_by_hand() -> None:
    steps = steps_of(199, 1000, 0)
    first = dict(zip(SIGNS, np.round(steps.drift[0] * 1000), strict=False))
    assert first["2"] == 1  # 200
    assert first["0"] == -199  # nothing begins with 0 but 0 itself
    assert np.isnan(first["."])
    assert np.round(steps.drift[2, END] * 1000) == -180  # "19" and no more
    assert np.isnan(steps.drift[3, :END]).all()  # 1990 and up are outside of the frame
    assert np.round(steps_of(99, 1000, 0).drift[0, 1] * 1000) == 1  # 100 is one more, however many digits it has


def test_a_tokenizer_that_joins_digits_is_refused(tmp_path: Path) -> None:
    joined = Tokenizer(models.BPE())
    joined.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    joined.train_from_iterator([str(number) for number in range(100, 200)] * 3, trainer)
    joined.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    assert len(tokenizer.encode("156")) == 1
    with pytest.raises(InputError, match="one token for each digit"):
        locate(record([[100, 100, 200, 200]], ["cup"]), GEOMETRY, get_family("qwen3_vl"), tokenizer)


def test_an_absent_object_has_no_coordinates(tokenizer: TextTokenizer) -> None:
    family = get_family("qwen3_vl")
    ids, found = locate(record([], []), GEOMETRY, family, tokenizer)
    assert (tokenizer.decode(ids), found) == (family.box_format.absent, [])
    assert json.loads(family.box_format.absent) == []
    assert family.box_format.decimals == 0
