"""Scores of boxes: which tokens count, in every style of box text, and probabilities against a second walk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgetune_runtime.backends import load_backend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.codec.confidence import TokenProbability, token_probabilities
from edgetune_runtime.codec.grounding import Geometry, encode, parse
from edgetune_runtime.decode import Prompt, greedy_steps, prefill, step
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.rope import mrope_positions

GEOMETRY = Geometry(200, 100, 256, 128)
TWO = [[20.0, 10.0, 150.0, 88.0], [4.0, 3.0, 60.0, 70.0]]


def letters(text: str, unsure: dict[int, float]) -> list[TokenProbability]:
    """One token a character, certain but at the given places."""
    return [TokenProbability(place + 1, unsure.get(place, 1.0)) for place in range(len(text))]


def scores(name: str, text: str, tokens: list[TokenProbability]) -> list[float | None]:
    return [found.score for found in parse(text, GEOMETRY, FAMILIES[name].box_format, tokens).detections]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_digit_of_a_box_counts_for_this_box_and_nothing_else_counts(name: str) -> None:
    family = FAMILIES[name]
    text = encode(TWO, ["cup 5", "7 mugs"], GEOMETRY, family.box_format)
    spoilt = [scores(name, text, letters(text, {place: 0.5})) for place in range(len(text))]
    alone = [encode([box], ["x"], GEOMETRY, family.box_format).replace("bbox_2d", "") for box in TWO]
    digits = [sum(letter.isdigit() for letter in one) for one in alone]
    for box, count in enumerate(digits):
        lowered = [found[box] for found in spoilt if found[box] != 1.0]
        assert lowered == pytest.approx([0.5 ** (1 / count)] * count)
        assert all(found[1 - box] == 1.0 for found in spoilt if found[box] != 1.0)


def test_tokens_of_several_characters_count_once() -> None:
    text = '[{"bbox_2d": [100, 200, 300, 400], "label": "a"}]'
    ends = [text.index("100"), text.index(", 200"), text.index(" 300"), text.index("400"), text.index("400") + 5]
    tokens = [
        TokenProbability(end, p) for end, p in zip([*ends, len(text)], (0.1, 0.9, 0.8, 0.5, 0.25, 0.1), strict=True)
    ]
    (score,) = scores("qwen3_vl", text, tokens)
    assert score == pytest.approx((0.9 * 0.8 * 0.5 * 0.25) ** 0.25)


def test_without_probabilities_there_is_no_score() -> None:
    text = encode(TWO, ["a", "b"], GEOMETRY, FAMILIES["qwen3_vl"].box_format)
    assert scores("qwen3_vl", text, []) == [None, None]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_refusal_has_the_probability_of_all_of_its_tokens(name: str) -> None:
    box_format = FAMILIES[name].box_format
    for words in (box_format.absent, *box_format.refusals):
        unsure = dict.fromkeys(range(0, len(words), 2), 0.5)
        answer = parse(words, GEOMETRY, box_format, letters(words, unsure))
        assert answer.refused and answer.refusal_score == pytest.approx(0.5 ** len(unsure))
        assert parse(words, GEOMETRY, box_format).refusal_score is None
    text = encode(TWO, ["a", "b"], GEOMETRY, box_format)
    assert parse(text, GEOMETRY, box_format, letters(text, {})).refusal_score is None


def test_probabilities_are_the_softmax_of_the_logits(qwen3_vl_bundle: Path) -> None:
    bundle = Bundle.load(qwen3_vl_bundle)
    backend = load_backend(bundle, threads=1)
    ids = np.arange(40, 60, dtype=np.int64)
    image_token = bundle.tokens["image"]
    positions, following = mrope_positions(ids, np.empty((0, 3), np.int64), image_token=image_token, merge_size=2)
    prompt = Prompt(ids, positions, following, image_token, None)
    found = list(greedy_steps(backend, prompt, stop=(), max_new_tokens=6, max_length=100))
    logits = prefill(backend, prompt, room=6)
    for place, (token, probability, passes) in enumerate(found):
        assert passes == place + 1
        exact = logits.astype(np.float64)
        exact = np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum()
        assert token == exact.argmax()
        assert probability == pytest.approx(exact[token], rel=1e-5)
        logits = step(backend, token, following + place)


def test_text_ends_are_those_of_the_growing_answer() -> None:
    words = ["[", "12", ", ", "345", "]"]
    found = token_probabilities(range(5), [0.5] * 5, lambda ids: "".join(words[i] for i in ids))
    assert [token.end for token in found] == [1, 3, 5, 8, 9]
    assert math.prod(token.probability for token in found) == 0.5**5
