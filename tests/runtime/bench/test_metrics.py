"""Metrics against counting pixels, published examples and exact arithmetic."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetune_runtime.bench.metrics import (
    SampleScore,
    iou,
    match,
    mcnemar,
    paired_bootstrap,
    sample_iou,
    score_grounding,
    summarize,
)
from edgetune_runtime.codec.grounding import Geometry, parse
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.records import read_records

grid_boxes = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])]
)


@given(st.lists(grid_boxes, max_size=3), st.lists(grid_boxes, max_size=3))
def test_iou_equals_counting_pixels(first: list[list[int]], second: list[list[int]]) -> None:
    def mask(box: list[int]) -> np.ndarray:
        covered = np.zeros((12, 12), bool)
        covered[box[1] : box[3], box[0] : box[2]] = True
        return covered

    expected = np.zeros((len(first), len(second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            union = (mask(a) | mask(b)).sum()
            expected[i, j] = (mask(a) & mask(b)).sum() / union if union else 0
    np.testing.assert_allclose(iou(first, second), expected)


def test_match_uses_every_box_once() -> None:
    target = [[0, 0, 10, 10], [0, 0, 10, 5]]
    assert match([[0, 0, 10, 10]], target).tolist() == [1, 0]
    assert match([[0, 0, 10, 5], [0, 0, 10, 10]], target).tolist() == [1, 1]
    assert match([], target).tolist() == [0, 0]


def test_sample_iou() -> None:
    target = [[0, 0, 10, 10]]
    assert sample_iou([], target) == 0
    assert sample_iou([[0, 0, 5, 5], [0, 0, 10, 10]], target) == 0.25  # the first box is the answer
    two = [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert sample_iou(target, two) == 0.5  # one missed
    assert sample_iou([*two, [50, 50, 60, 60]], two) == pytest.approx(2 / 3)  # one too many
    with pytest.raises(InputError, match="absent"):
        sample_iou(target, [])


def test_summary() -> None:
    samples = [
        SampleScore(0.95, "found"),
        SampleScore(0.75, "found"),
        SampleScore(0.5, "found"),
        SampleScore(0.0, "refused"),
        SampleScore(0.0, "unparsed"),
        SampleScore(None, "refused"),
        SampleScore(None, "refused"),
        SampleScore(None, "found"),
    ]
    scores = summarize(samples)
    assert (scores.samples, scores.present) == (8, 5)
    assert (scores.acc50, scores.acc75, scores.acc90) == (0.6, 0.4, 0.2)
    assert scores.miou == pytest.approx(2.2 / 5)
    assert scores.refusal_accuracy == scores.refusal_precision == pytest.approx(2 / 3)
    assert summarize(samples[3:4]).refusal_precision == 0 and math.isnan(summarize(samples[:1]).refusal_precision)
    assert scores.false_refusals == 0.2 and scores.parse_failures == 1 / 8
    assert [sample.correct() for sample in samples] == [True, True, True, False, False, True, True, False]


def test_summary_of_nothing_is_json() -> None:
    scores = summarize([])
    assert math.isnan(scores.miou)
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["miou"] is None


def test_scores_of_answers_to_records(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "text": "cup", "bbox": [10, 10, 60, 40]}, {"image": "a.png", "text": "mug", "bbox": []}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    geometry = Geometry(100, 50, 128, 64)
    answers = [
        parse(text, geometry, FAMILIES["qwen3_vl"].box_format)
        for text in ('[{"bbox_2d": [100, 200, 600, 800], "label": "cup"}]', "[]")
    ]
    scores = score_grounding(answers, read_records(path))
    assert (scores.acc90, scores.miou, scores.refusal_accuracy, scores.parse_failures) == (1, 1, 1, 0)
    with pytest.raises(InputError, match="1 answers for 2 records"):
        score_grounding(answers[:1], read_records(path))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_equals_the_binomial_distribution(only_first: int, only_second: int, both: int, none: int) -> None:
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * none
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * none
    # Walk along the distribution of fair coin tosses, term by term in exact fractions.
    n, term, total = only_first + only_second, Fraction(1, 2 ** (only_first + only_second)), Fraction(0)
    for k in range(min(only_first, only_second) + 1):
        total += term
        term = term * (n - k) / (k + 1)
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p == pytest.approx(float(min(Fraction(1), 2 * total)))


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(2000)
    second = first + generator.normal(0.05, 0.3, 2000)
    delta, low, high = paired_bootstrap(first, second, range(2000), seed=1)
    difference = second - first
    margin = 1.96 * difference.std(ddof=1) / math.sqrt(2000)
    assert delta == pytest.approx(difference.mean())
    assert (low, high) == pytest.approx((difference.mean() - margin, difference.mean() + margin), abs=0.1 * margin)


def test_bootstrap_draws_whole_images() -> None:
    generator = np.random.default_rng(0)
    per_image = generator.normal(0, 1, 100)
    difference = np.repeat(per_image, 10)  # ten questions on a picture say nothing new
    _, low, high = paired_bootstrap(np.zeros(1000), difference, np.repeat(np.arange(100), 10).tolist())
    margin = 1.96 * per_image.std(ddof=1) / 10
    assert (high - low) / 2 == pytest.approx(margin, rel=0.15)


def test_bootstrap_weighs_images_by_their_samples() -> None:
    groups = ["a"] * 9 + ["b"] + ["c"] * 3
    assert paired_bootstrap(np.zeros(13), np.ones(13), groups) == (1, 1, 1)  # a constant has no spread


def test_bootstrap_repeats_exactly() -> None:
    first, second = np.random.default_rng(2).random((2, 50))
    assert paired_bootstrap(first, second, range(50), seed=3) == paired_bootstrap(first, second, range(50), seed=3)


@pytest.mark.parametrize(
    ("first", "second", "groups", "message"),
    [
        ([1, 2], [1], [0, 1], "one length"),
        ([1, 2], [1, float("nan")], [0, 1], "finite"),
        ([1, 2], [1, 2], ["a", "a"], "at least two images"),
    ],
)
def test_bootstrap_refuses(first: list[float], second: list[float], groups: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired_bootstrap(first, second, groups)


def test_mcnemar_refuses_unequal_lengths() -> None:
    with pytest.raises(InputError, match="one length"):
        mcnemar([True], [True, False])
