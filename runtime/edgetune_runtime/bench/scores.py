"""Turn predictions into figures: accuracies, percentiles, and paired differences against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.bench import metrics
from edgetune_runtime.bench.figures import (
    BoxDrift,
    Differences,
    Grounding,
    Interval,
    McNemarTest,
    Percentiles,
    ScoreInterval,
    Stages,
    Vqa,
    WorstBox,
)
from edgetune_runtime.bench.metrics import SampleScore
from edgetune_runtime.bench.predictions import GroundPrediction, Prediction, VqaPrediction, grounding, questions
from edgetune_runtime.bench.results import Costs, Statistics
from edgetune_runtime.errors import InputError
from edgetune_runtime.timing import STAGES

_THRESHOLDS = {"acc50": 0.5, "acc75": 0.75, "acc90": 0.9}
_SAME_BOX = 0.9  # boxes that overlap less than this have drifted

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
STATISTICS = Statistics("bootstrap over images, percentiles", LEVEL, RESAMPLES, SEED)
"""How every interval here is made."""


def summarise(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return what predictions come to, by the names of the fields of `results.Measured`.

    These are `stages`, percentiles of each stage's seconds over records; `tokens_per_second`, the median decode speed;
    `image_tokens`, the median of a picture's; `ground` and `vqa`, accuracies in 0-1, None without such records.
    """
    times = {stage: [getattr(each.timings, stage) for each in predictions] for stage in STAGES}
    speeds = [speed for each in predictions if (speed := each.timings.tokens_per_second) is not None]
    lengths = [each.image_tokens for each in predictions if each.image_tokens is not None]
    return {
        "stages": Stages(**{stage: _percentiles(seconds) for stage, seconds in times.items()}),
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
        "image_tokens": float(np.median(lengths)) if lengths else None,
        "ground": _ground(grounding(predictions)),
        "vqa": _vqa(questions(predictions)),
    }


def costs(report: Costs) -> dict[str, Any]:
    """What a worker reports besides its answers, by the names of the fields of `results.Costs`."""
    return {each.name: getattr(report, each.name) for each in fields(Costs)}


def compare(predictions: Sequence[Prediction], baseline: Sequence[Prediction]) -> Differences:
    """Return the differences of predictions to the baseline's for the same records, in the same order.

    `vqa` is the soft accuracy; `mcnemar` counts hits at IoU 0.5; `drift` says how far the boxes moved, see `box_drift`.

    Raises:
        InputError: the two answer other records, or the same in another order.
    """
    check_same_records(predictions, baseline)
    pairs = list(zip(baseline, predictions, strict=True))
    boxes = [(a, b) for a, b in pairs if isinstance(a, GroundPrediction) and isinstance(b, GroundPrediction)]
    found: dict[str, Any] = dict.fromkeys((*_THRESHOLDS, "miou", "vqa", "mcnemar"))
    present = [(a.iou, b.iou, b.image) for a, b in boxes if a.iou is not None and b.iou is not None]
    if present:
        images = [image for _, _, image in present]
        before, after = (np.array([pair[side] for pair in present]) for side in (0, 1))
        for key, threshold in _THRESHOLDS.items():
            found[key] = difference(before >= threshold, after >= threshold, images)
        found["miou"] = difference(before, after, images)
        test = metrics.mcnemar(before >= 0.5, after >= 0.5)
        found["mcnemar"] = McNemarTest(test.only_first, test.only_second, test.p)
    asked = [(a, b) for a, b in pairs if isinstance(a, VqaPrediction) and isinstance(b, VqaPrediction)]
    if asked:
        images = [b.image for _, b in asked]
        found["vqa"] = difference([a.accuracy for a, _ in asked], [b.accuracy for _, b in asked], images)
    return Differences(**found, drift=_drift([b for _, b in boxes], [a for a, _ in boxes]))


def check_same_records(predictions: Sequence[Prediction], others: Sequence[Prediction]) -> None:
    """Refuse predictions that cannot be compared one by one.

    Raises:
        InputError: their numbers differ, or a record stands elsewhere, asks something else or has another truth.
    """
    if len(predictions) != len(others):
        raise InputError(f"{len(predictions)} answers where there are {len(others)} records")
    for number, (one, other) in enumerate(zip(predictions, others, strict=True), 1):
        if _question(one) != _question(other):
            what = f"{one.source} {one.text!r}, not of {other.source} {other.text!r}"
            same = (one.source, one.text) == (other.source, other.text)
            raise InputError(f"answer {number} is of {what}" if not same else f"answer {number} has another truth")


def box_drift(one: Prediction, baseline: Prediction) -> float | None:
    """Return the IoU (0-1) between the boxes of two answers to one record; None when neither gave a box.

    With several boxes it is the sum of matched IoUs over the larger count, so 1 means the same boxes, and 0 that only
    one side found anything. The truth has no part in it.
    """
    if not (isinstance(one, GroundPrediction) and isinstance(baseline, GroundPrediction)):
        return None
    if not (one.boxes or baseline.boxes):
        return None
    if not (one.boxes and baseline.boxes):
        return 0.0
    matched = metrics.match(one.boxes, baseline.boxes).sum()
    return float(matched / max(len(one.boxes), len(baseline.boxes)))


def difference(before: npt.ArrayLike, after: npt.ArrayLike, images: Sequence[str]) -> Interval | None:
    """Mean of `after - before` with its interval and the numbers of records and images it rests on.

    One image alone says nothing about others, so it has none.
    """
    found = score_difference(before, after, images)
    return None if found is None else Interval(found.value, found.low, found.high, found.records, found.images)


def score_difference(before: npt.ArrayLike, after: npt.ArrayLike, images: Sequence[str]) -> ScoreInterval | None:
    """The same of scores that are no shares, such as CIDEr-D's 0 to 10."""
    count = len(set(images))
    if count < 2:
        return None
    delta = metrics.paired_bootstrap(before, after, images, level=LEVEL, resamples=RESAMPLES, seed=SEED)
    return ScoreInterval(delta.delta, delta.low, delta.high, len(images), count)


def _question(one: Prediction) -> tuple[object, ...]:
    """What makes two predictions answers to one record: its line, whatever a copy of the file is called."""
    truth = one.truth if isinstance(one, GroundPrediction) else one.expected
    return (one.kind, one.source.rpartition(":")[2], one.text, truth)


def _drift(rows: Sequence[GroundPrediction], baseline: Sequence[GroundPrediction]) -> BoxDrift | None:
    """Box drift over the records on which a side answered with boxes: mean IoU, share below 0.9, and the worst."""
    both = ((row, box_drift(row, other)) for row, other in zip(rows, baseline, strict=True))
    pairs = [(row, overlap) for row, overlap in both if overlap is not None]
    if not pairs:
        return None
    overlaps = np.array([overlap for _, overlap in pairs])
    images = [row.image for row, _ in pairs]
    worst, lowest = min(pairs, key=lambda pair: pair[1])
    moved = overlaps < _SAME_BOX
    return BoxDrift(
        records=len(pairs),
        iou=float(overlaps.mean()),
        iou_interval=_mean(overlaps, images),
        moved=float(moved.mean()),
        moved_interval=_mean(moved, images),
        worst=WorstBox(lowest, worst.source),
    )


def _ground(rows: Sequence[GroundPrediction]) -> Grounding | None:
    if not rows:
        return None
    scores = metrics.summarize([SampleScore(row.iou, row.status) for row in rows]).to_dict()
    present = [(row.iou, row.image) for row in rows if row.iou is not None]
    ious, images = np.array([iou for iou, _ in present]), [image for _, image in present]
    absent = [row for row in rows if row.iou is None]
    refused = [row for row in rows if row.status == "refused"]
    hits: dict[str, Any] = {
        f"{key}_interval": _mean(ious >= threshold, images) for key, threshold in _THRESHOLDS.items()
    }
    return Grounding(
        **scores,
        **hits,
        miou_interval=_mean(ious, images),
        refused=len(refused),
        refused_absent=sum(row.iou is None for row in refused),
        refusal_accuracy_interval=_mean([row.status == "refused" for row in absent], _images(absent)),
        refusal_precision_interval=_mean([row.iou is None for row in refused], _images(refused)),
        parse_failures_interval=_mean([row.status == "unparsed" for row in rows], _images(rows)),
        unparsed=sum(row.status == "unparsed" for row in rows),
        truncated=sum(not row.complete for row in rows),
    )


def _vqa(rows: Sequence[VqaPrediction]) -> Vqa | None:
    if not rows:
        return None
    found: dict[str, Any] = {}
    for key in ("accuracy", "anls", "exact"):
        values = [getattr(row, key) for row in rows]
        found |= {key: float(np.mean(values)), f"{key}_interval": _mean(values, _images(rows))}
    return Vqa(samples=len(rows), **found)


def _images(rows: Sequence[Prediction]) -> list[str]:
    return [row.image for row in rows]


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    return Percentiles(*(float(value) for value in np.percentile(seconds, (50, 95, 99))))


def _mean(values: npt.ArrayLike, images: Sequence[str]) -> Interval | None:
    """The mean of values with its interval."""
    array = np.asarray(values, dtype=np.float64)
    return difference(np.zeros(array.shape), array, images)
