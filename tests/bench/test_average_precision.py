"""COCO-style AP against the 101-point rule written out, and what happens without confidences or boxes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from answers import ground, part
from edgetune_bench.average_precision import average_precision
from edgetune_runtime.bench.predictions import GroundPrediction, read
from edgetune_runtime.errors import MissingDependency

LARGE = [0.0, 0.0, 200.0, 200.0]


def row(number: int, share: float | None, score: float, *, truth: list[list[float]] | None = None) -> GroundPrediction:
    """An answer whose only box has this IoU with the target; None refuses."""
    boxes = [] if share is None else part(share)
    return answer(ground(f"image {number}", boxes, truth=truth, number=number) | {"scores": [score] * len(boxes)})


def answer(values: dict[str, Any]) -> GroundPrediction:
    found = read(values)
    assert isinstance(found, GroundPrediction)
    return found


def by_hand(rows: list[GroundPrediction], threshold: float) -> float:
    """Mean precision at 101 recalls, where a precision is the best at that recall or beyond."""
    targets = sum(len(one.truth) for one in rows)
    answered = sorted((one for one in rows if one.boxes), key=lambda one: -(one.scores[0] or 0.0))
    right = np.array([bool(one.truth) and one.boxes[0][2] / 10 >= threshold - 1e-9 for one in answered])
    recall, precision = right.cumsum() / targets, right.cumsum() / np.arange(1, len(right) + 1)
    best = [max(precision[recall >= level - 1e-12], default=0.0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(best))


def test_ap_is_the_101_point_mean_over_ten_thresholds() -> None:
    generator = np.random.default_rng(0)
    rows = [row(n, float(s), float(p)) for n, (s, p) in enumerate(generator.uniform(0.3, 1.0, (40, 2)))]
    rows += [row(100 + n, None, 0.0) for n in range(5)]
    rows += [row(200 + n, 1.0, float(p), truth=[]) for n, p in enumerate(generator.random(5))]
    found = average_precision(rows)
    assert found.ap50 == pytest.approx(by_hand(rows, 0.5))
    assert found.ap75 == pytest.approx(by_hand(rows, 0.75))
    assert found.ap == pytest.approx(np.mean([by_hand(rows, 0.5 + 0.05 * step) for step in range(10)]))
    assert found.reason is None


def test_confidence_matters_and_sizes_are_apart() -> None:
    sure = [row(1, 1.0, 0.9), row(2, 0.2, 0.1)]
    unsure = [row(1, 1.0, 0.1), row(2, 0.2, 0.9)]
    ap = [average_precision(rows).ap50 for rows in (sure, unsure)]
    assert ap == pytest.approx([51 / 101, 51 / 101 / 2])
    mixed = [row(1, 1.0, 0.9), answer(ground("large", [], truth=[LARGE], number=2))]
    found = average_precision(mixed)
    assert found.ap_small == pytest.approx(1.0)
    assert (found.ap_medium, found.ap_large) == (None, 0.0)


def test_boxes_of_absent_objects_are_false_positives() -> None:
    present = [row(1, 1.0, 0.5), row(2, 1.0, 0.4)]
    assert average_precision(present).ap == pytest.approx(1.0)
    assert average_precision([*present, row(3, 1.0, 0.9, truth=[])]).ap == pytest.approx(2 / 3)
    assert average_precision([*present, row(3, None, 0.0, truth=[])]).ap == pytest.approx(1.0)


def test_no_score_is_made_up() -> None:
    rows = [row(1, 1.0, 0.9), replace(row(2, 1.0, 0.9), scores=(None,))]
    found = average_precision(rows)
    assert (found.ap, found.ap_interval) == (None, None)
    assert "1 boxes have no confidence" in (found.reason or "")
    older = [replace(one, scores=()) for one in rows]
    assert "2 boxes" in (average_precision(older).reason or "")


def test_nothing_answered_and_nothing_to_answer() -> None:
    assert average_precision([row(1, None, 0.0), row(2, None, 0.0)]).ap == 0.0
    assert average_precision([row(1, 1.0, 0.9, truth=[])]).reason == "no record has a target"


def test_the_interval_draws_images_and_repeats_exactly() -> None:
    generator = np.random.default_rng(1)
    rows = [row(n // 2, float(s), float(p)) for n, (s, p) in enumerate(generator.uniform(0.2, 1.0, (30, 2)))]
    first, again = average_precision(rows), average_precision(rows)
    assert first == again
    interval = first.ap_interval
    assert interval is not None and first.ap is not None
    assert interval.low < first.ap == interval.value < interval.high
    assert (interval.records, interval.images) == (30, 15)
    assert average_precision([row(1, 1.0, 0.5), row(1, 0.3, 0.4)]).ap_interval is None  # one image
    sure = [row(n, 1.0, 0.5) for n in range(4)]
    interval = average_precision(sure).ap_interval
    assert interval is not None
    assert interval.low == interval.high == pytest.approx(1.0)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingDependency, match="faster-coco-eval") as caught:
        average_precision([row(1, 1.0, 0.9)])
    assert "[metrics]" in str(caught.value.hint)
