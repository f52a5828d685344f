"""COCO-style average precision of grounding answers, by faster-coco-eval."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetune_runtime.bench.figures import AveragePrecision, Interval
from edgetune_runtime.bench.predictions import GroundPrediction
from edgetune_runtime.bench.significance import draws
from edgetune_runtime.errors import MissingDependency, install_command

_NAMES = {
    "ap": "AP_all",
    "ap50": "AP_50",
    "ap75": "AP_75",
    "ap_small": "AP_small",
    "ap_medium": "AP_medium",
    "ap_large": "AP_large",
}
RESAMPLES = 200
"""Bootstrap samples of its interval: each is a whole evaluation, some 0.2 ms a record."""


def average_precision(rows: Sequence[GroundPrediction], *, seed: int = 0, level: float = 0.95) -> AveragePrecision:
    """Return the AP (0-1) of boxes ranked by their scores, over all records at once.

    A record (a phrase about a picture) is an image of the evaluation, and there is one category: boxes of an absent
    object are false positives. `ap` is the mean over IoU 0.50, 0.55 ... 0.95; `ap_small`, `ap_medium` and `ap_large`
    are over targets below 32², up to 96² and above, in pixels of the original picture, None where there is no such
    target. `ap_interval` is over images drawn again.

    Args:
        rows: answers with boxes.
        seed: of the interval's random generator.
        level: its coverage.

    Returns:
        The figures, and `reason`: why they are all None, or None. A box without a score is such a reason:
        there is no ranking then, and none is made up.

    Raises:
        MissingDependency: faster-coco-eval is not installed.
    """
    coco = library()
    nothing: dict[str, Any] = dict.fromkeys((*_NAMES, "ap_interval"))
    unscored = sum(score is None for row in rows for score in row.confidences)
    if unscored:
        reason = f"{unscored} boxes have no confidence: their engine does not give probabilities"
        return AveragePrecision(**nothing, reason=reason)
    if not any(row.truth for row in rows):
        return AveragePrecision(**nothing, reason="no record has a target")
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.image, []).append(place)
    found = _evaluate(coco, rows)
    if len(groups) < 2:
        return AveragePrecision(**found, ap_interval=None, reason=None)
    members = list(groups.values())
    values = []
    for drawn in draws(len(members), seed=seed, resamples=RESAMPLES):
        for chosen in drawn:
            value = _evaluate(coco, [rows[place] for group in chosen for place in members[group]])["ap"]
            if value is not None:
                values.append(value)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    assert found["ap"] is not None
    interval = Interval(found["ap"], float(low), float(high), len(rows), len(members))
    return AveragePrecision(**found, ap_interval=interval, reason=None)


def library() -> Any:
    """Return faster-coco-eval's module.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module("faster_coco_eval")
    except ImportError as error:
        hint = install_command("metrics")
        raise MissingDependency("COCO-style AP needs faster-coco-eval", hint=hint) from error


def coco_truth(rows: Sequence[GroundPrediction]) -> dict[str, Any]:
    """The targets as a COCO instances file: record N is image N + 1, its phrase stands in `caption`."""
    boxes = [(number, box) for number, row in enumerate(rows, 1) for box in row.truth]
    return {
        "info": {"description": "one image per record: a phrase about a picture"},
        "images": [{"id": number, "file_name": row.image, "caption": row.text} for number, row in enumerate(rows, 1)],
        "annotations": [
            {"id": place, "image_id": number, "category_id": 1, **_xywh(box), "iscrowd": 0}
            for place, (number, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "object"}],
    }


def coco_results(rows: Sequence[GroundPrediction]) -> list[dict[str, Any]]:
    """The answers as a COCO results file; the numbers are those of `coco_truth`."""
    return [
        {"image_id": number, "category_id": 1, "bbox": _xywh(box)["bbox"], "score": score}
        for number, row in enumerate(rows, 1)
        for box, score in zip(row.boxes, row.confidences, strict=True)
    ]


def _xywh(box: Sequence[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _evaluate(coco: Any, rows: Sequence[GroundPrediction]) -> dict[str, float | None]:
    results = coco_results(rows)
    truth = coco.COCO(coco_truth(rows))
    # The library cannot read an empty list of results; an empty box overlaps nothing, so it is never right either.
    empty = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 0.0, 0.0], "score": 0.0}
    run = coco.COCOeval_faster(truth, truth.loadRes(results or [empty]), "bbox", print_function=lambda *_: None)
    run.run()
    values = {name: float(run.stats_as_dict[theirs]) for name, theirs in _NAMES.items()}
    return {name: None if value < 0 else value for name, value in values.items()}  # -1: nothing of that size
