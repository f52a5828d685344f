"""Figures beyond the usual ones, which libraries compute: asked for by name, added to the results of rows that ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_bench import average_precision, captions
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.scores import LEVEL, RESAMPLES, SEED, Row, difference

METRICS = ("ap", "bleu", "cider")
"""COCO-style average precision of boxes; BLEU and CIDEr-D of answers in words."""


def check(metrics: Sequence[str]) -> None:
    """Raise MissingDependency now, before anything runs, when a library that a metric needs is not installed."""
    if "ap" in metrics:
        average_precision.library()
    if "bleu" in metrics:
        captions.library()


def add(results: Mapping[str, Any], answers: Answers, metrics: Sequence[str]) -> None:
    """Add the metrics to the `ground` and `vqa` figures of every row that has such records; changes `results`."""
    for row in results["rows"]:
        if row["status"] == "failed":
            continue
        said = answers[row["name"]]
        if row["ground"] and "ap" in metrics:
            ground = [answer for answer in said if answer["kind"] == "ground"]
            row["ground"]["coco"] = average_precision.average_precision(ground, seed=SEED, level=LEVEL)
        if row["vqa"]:
            row["vqa"] |= _texts([answer for answer in said if answer["kind"] == "vqa"], metrics)


def _texts(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, Any]:
    predictions, references = [row["raw"] for row in rows], [row["expected"] for row in rows]
    images = [row["image"] for row in rows]
    found: dict[str, Any] = {}
    if "bleu" in metrics:
        found |= captions.bleu(predictions, references, images, seed=SEED, resamples=RESAMPLES, level=LEVEL)
    if "cider" in metrics and len(rows) > 1:
        scores = captions.cider_d(predictions, references)
        interval = difference([0.0] * len(scores), scores, images)
        found |= {"cider": sum(scores) / len(scores), "cider_interval": interval}
    return found
