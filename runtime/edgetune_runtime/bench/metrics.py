"""How good answers are: boxes against boxes, and everything else that evaluation reports.

Text answers and the statistics of comparisons live in modules of their own and are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgetune_runtime.bench.significance import Delta, McNemar, mcnemar, paired_bootstrap
from edgetune_runtime.bench.text_metrics import anls, exact_match, vqa_accuracy
from edgetune_runtime.codec.geometry import as_boxes
from edgetune_runtime.codec.grounding import ParsedAnswer
from edgetune_runtime.errors import InputError

__all__ = [
    "Delta",
    "GroundingScores",
    "McNemar",
    "SampleScore",
    "anls",
    "exact_match",
    "iou",
    "match",
    "mcnemar",
    "paired_bootstrap",
    "sample_iou",
    "score_grounding",
    "summarize",
    "vqa_accuracy",
]

Status = Literal["found", "refused", "unparsed"]


class HasBoxes(Protocol):
    """A record: its boxes are [N, 4], or None when it is not about boxes."""

    @property
    def boxes(self) -> npt.NDArray[np.float32] | None:
        """Target boxes."""


def iou(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the intersection over union of boxes [N, 4] and [M, 4] (xyxy, one frame) as float64 [N, M].

    A box without area overlaps nothing: its row or column is 0.
    """
    a, b = as_boxes(first)[:, None], as_boxes(second)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.maximum(sides, 0).prod(axis=-1)
    areas = [np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - overlap
    ratios = np.zeros(overlap.shape)
    np.divide(overlap, union, out=ratios, where=union > 0)
    return ratios


def match(predicted: npt.ArrayLike, target: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return for each target [M] the IoU of the prediction it is paired with, 0 for none.

    Pairs are taken greedily by falling IoU, every box at most once, as in COCO's evaluation.
    """
    overlaps = iou(predicted, target)
    matched = np.zeros(overlaps.shape[1])
    while overlaps.size and overlaps.max() > 0:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        matched[column] = overlaps[row, column]
        overlaps[row], overlaps[:, column] = 0, 0
    return matched


def sample_iou(predicted: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Return one number in 0-1 for the boxes predicted [N, 4] where [M, 4] were right, M >= 1.

    With one target only the first prediction counts, as in referring-expression benchmarks: answering
    with many boxes does not help. With several it is the sum of matched IoUs over max(N, M), so that
    missed and superfluous boxes both cost.

    Raises:
        InputError: there is no target; an absent object is a matter of refusal, not of IoU.
    """
    found, wanted = as_boxes(predicted), as_boxes(target)
    if not len(wanted):
        raise InputError("no target boxes: IoU is not defined for an absent object")
    if len(wanted) == 1:
        found = found[:1]
    return float(match(found, wanted).sum() / max(len(found), len(wanted)))


@dataclass(frozen=True)
class SampleScore:
    """The result on one sample: its IoU (None if the object is absent) and what the answer was."""

    iou: float | None
    status: Status

    def correct(self, threshold: float = 0.5) -> bool:
        """Return whether the boxes are good enough or, for an absent object, whether it was refused."""
        return self.status == "refused" if self.iou is None else self.iou >= threshold


@dataclass(frozen=True)
class GroundingScores:
    """Shares (0-1) over many samples; NaN where there is no sample to divide by.

    Attributes:
        samples: number of all samples.
        present: how many of them have a target; the accuracies and `miou` are over these.
        acc50: share with IoU >= 0.5.
        acc75: share with IoU >= 0.75.
        acc90: share with IoU >= 0.9.
        miou: mean IoU.
        refusal_accuracy: share of the absent objects that were refused: the recall of refusing.
        refusal_precision: share of the refusals whose object was absent.
        false_refusals: share of the present objects that were refused.
        parse_failures: share of all answers that were neither boxes nor a refusal.
    """

    samples: int
    present: int
    acc50: float
    acc75: float
    acc90: float
    miou: float
    refusal_accuracy: float
    refusal_precision: float
    false_refusals: float
    parse_failures: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, None for NaN."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}


def summarize(samples: Sequence[SampleScore]) -> GroundingScores:
    """Return the scores over samples."""
    ious = [sample.iou for sample in samples if sample.iou is not None]
    absent = [sample for sample in samples if sample.iou is None]
    refused = [sample for sample in samples if sample.status == "refused"]
    return GroundingScores(
        samples=len(samples),
        present=len(ious),
        acc50=_mean([value >= 0.5 for value in ious]),
        acc75=_mean([value >= 0.75 for value in ious]),
        acc90=_mean([value >= 0.9 for value in ious]),
        miou=_mean(ious),
        refusal_accuracy=_mean([sample.status == "refused" for sample in absent]),
        refusal_precision=_mean([sample.iou is None for sample in refused]),
        false_refusals=_mean([sample.status == "refused" for sample in samples if sample.iou is not None]),
        parse_failures=_mean([sample.status == "unparsed" for sample in samples]),
    )


def score_grounding(answers: Sequence[ParsedAnswer], records: Sequence[HasBoxes]) -> GroundingScores:
    """Return the scores of answers to grounding records, in the same order.

    Raises:
        InputError: counts differ, or a record has no boxes to compare with.
    """
    if len(answers) != len(records):
        raise InputError(f"{len(answers)} answers for {len(records)} records")
    samples = []
    for answer, record in zip(answers, records, strict=True):
        if record.boxes is None:
            raise InputError("a record without boxes has no grounding score")
        found = [detection.box for detection in answer.detections]
        samples.append(SampleScore(sample_iou(found, record.boxes) if len(record.boxes) else None, answer.status))
    return summarize(samples)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
