"""Turn workers' rows into figures: accuracies, percentiles, and paired differences against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.bench import metrics
from edgetune_runtime.bench.metrics import SampleScore
from edgetune_runtime.timing import STAGES, Timings

Row = dict[str, Any]
Interval = dict[str, float]
_PERCENTILES = (50, 95, 99)
_THRESHOLDS = {"acc50": 0.5, "acc75": 0.75, "acc90": 0.9}
_SAME_BOX = 0.9  # boxes that overlap less than this have drifted

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
STATISTICS = {"method": "bootstrap over images, percentiles", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
"""How every interval here is made."""


def scored(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a worker's rows with their scores.

    Grounding rows get `iou` (None for an absent object); questions get `accuracy`, `anls` and `exact`, all
    in 0-1.
    """
    return [dict(row) | _scores(row) for row in rows]


def summarise(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return what one worker's run comes to.

    Args:
        report: the worker's JSON.
        rows: its rows, from `scored`.

    Returns:
        The report's own costs (seconds, bytes); `stages`, percentiles of each stage's seconds over rows;
        `tokens_per_second`, the median decode speed; `ground` and `vqa`, accuracies in 0-1, None without such rows.
    """
    costs = {key: value for key, value in report.items() if key not in ("schema", "rows")}
    times = {stage: [row["timings"][stage] for row in rows] for stage in STAGES}
    speeds = [speed for row in rows if (speed := Timings(**row["timings"]).tokens_per_second) is not None]
    return costs | {
        "stages": {stage: _percentiles(seconds) for stage, seconds in times.items()},
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
        "ground": _ground([row for row in rows if row["kind"] == "ground"]),
        "vqa": _vqa([row for row in rows if row["kind"] == "vqa"]),
    }


def compare(rows: Sequence[Row], baseline: Sequence[Row]) -> dict[str, Any]:
    """Return the differences of rows to the baseline's rows for the same records, in the same order.

    Returns:
        `acc50`, `acc75`, `acc90`, `miou` and `vqa` (soft accuracy): mean difference with a 95 % interval, None where
        no record has it or only one image does; `mcnemar`: of the hits at IoU 0.5, those that only the baseline and
        only this row has, and the exact p-value; `drift`: how far the boxes moved, see `box_drift`.
    """
    assert [row["source"] for row in rows] == [row["source"] for row in baseline]
    found: dict[str, Any] = dict.fromkeys((*_THRESHOLDS, "miou", "vqa", "mcnemar"))
    places = [i for i, row in enumerate(rows) if row["kind"] == "ground" and row["iou"] is not None]
    if places:
        images = [rows[i]["image"] for i in places]
        before, after = (np.array([side[i]["iou"] for i in places]) for side in (baseline, rows))
        for key, threshold in _THRESHOLDS.items():
            found[key] = difference(before >= threshold, after >= threshold, images)
        found["miou"] = difference(before, after, images)
        test = metrics.mcnemar(before >= 0.5, after >= 0.5)
        found["mcnemar"] = {"only_baseline": test.only_first, "only_row": test.only_second, "p": test.p}
    asked = [i for i, row in enumerate(rows) if row["kind"] == "vqa"]
    if asked:
        before, after = (np.array([side[i]["accuracy"] for i in asked]) for side in (baseline, rows))
        found["vqa"] = difference(before, after, [rows[i]["image"] for i in asked])
    return found | {"drift": _drift(rows, baseline)}


def box_drift(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """Return the IoU (0-1) between the boxes of two answers to one record; None when neither gave a box.

    With several boxes it is the sum of matched IoUs over the larger count, so 1 means the same boxes, and 0 that only
    one side found anything. The truth has no part in it.
    """
    if row["kind"] != "ground" or not (row["boxes"] or baseline["boxes"]):
        return None
    if not (row["boxes"] and baseline["boxes"]):
        return 0.0
    matched = metrics.match(row["boxes"], baseline["boxes"]).sum()
    return float(matched / max(len(row["boxes"]), len(baseline["boxes"])))


def difference(before: npt.ArrayLike, after: npt.ArrayLike, images: Sequence[str]) -> Interval | None:
    """Mean of `after - before` with its interval and the numbers of records and images it rests on.

    One image alone says nothing about others, so it has none.
    """
    count = len(set(images))
    if count < 2:
        return None
    delta = metrics.paired_bootstrap(before, after, images, level=LEVEL, resamples=RESAMPLES, seed=SEED)
    return {"value": delta.delta, "low": delta.low, "high": delta.high, "records": len(images), "images": count}


def _drift(rows: Sequence[Row], baseline: Sequence[Row]) -> dict[str, Any] | None:
    """Box drift over the records on which a side answered with boxes: mean IoU, share below 0.9, and the worst."""
    both = ((row, box_drift(row, other)) for row, other in zip(rows, baseline, strict=True))
    pairs = [(row, overlap) for row, overlap in both if overlap is not None]
    if not pairs:
        return None
    overlaps = np.array([overlap for _, overlap in pairs])
    images = [row["image"] for row, _ in pairs]
    worst, lowest = min(pairs, key=lambda pair: pair[1])
    moved = overlaps < _SAME_BOX
    return {
        "records": len(pairs),
        "iou": float(overlaps.mean()),
        "iou_interval": _mean(overlaps, images),
        "moved": float(moved.mean()),
        "moved_interval": _mean(moved, images),
        "worst": {"iou": lowest, "source": worst["source"]},
    }


def _scores(row: Mapping[str, Any]) -> dict[str, float | None]:
    if row["kind"] == "ground":
        return {"iou": metrics.sample_iou(row["boxes"], row["truth"]) if row["truth"] else None}
    return {
        "accuracy": metrics.vqa_accuracy(row["raw"], row["expected"]),
        "anls": metrics.anls(row["raw"], row["expected"]),
        "exact": metrics.exact_match(row["raw"], row["expected"]),
    }


def _ground(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    scores = metrics.summarize([SampleScore(row["iou"], row["status"]) for row in rows]).to_dict()
    present = [row for row in rows if row["iou"] is not None]
    ious = np.array([row["iou"] for row in present])
    images = _images(present)
    absent = [row for row in rows if row["iou"] is None]
    refused = [row for row in rows if row["status"] == "refused"]
    return scores | {
        "acc50_interval": _mean(ious >= 0.5, images),
        "miou_interval": _mean(ious, images),
        "refused": len(refused),
        "refused_absent": sum(row["iou"] is None for row in refused),
        "refusal_accuracy_interval": _mean([row["status"] == "refused" for row in absent], _images(absent)),
        "refusal_precision_interval": _mean([row["iou"] is None for row in refused], _images(refused)),
        "unparsed": sum(row["status"] == "unparsed" for row in rows),
        "truncated": sum(not row["complete"] for row in rows),
    }


def _vqa(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    found: dict[str, Any] = {"samples": len(rows)}
    for key in ("accuracy", "anls", "exact"):
        values = [row[key] for row in rows]
        found |= {key: float(np.mean(values)), f"{key}_interval": _mean(values, _images(rows))}
    return found


def _images(rows: Sequence[Row]) -> list[str]:
    return [row["image"] for row in rows]


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    values = np.percentile(seconds, _PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(_PERCENTILES, values, strict=True)}


def _mean(values: npt.ArrayLike, images: Sequence[str]) -> Interval | None:
    """The mean of values with its interval."""
    array = np.asarray(values, dtype=np.float64)
    return difference(np.zeros(array.shape), array, images)
