"""What a quantized export does to answers: equal to the model with the same weights, and how far from the merged one.

Two questions that one number cannot answer. *Exact*: the written weights, in float32 activations and with the
reference's own image features, must choose the tokens and boxes of transformers with the dequantized weights: a
difference is a mistake in writing them. *Drift*: the export as it is shipped against the merged checkpoint: what
rounding costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_export.check.answers import Answers, choices
from edgetune_export.check.parity import MAX_LOST_INFORMATION, Predictions, compare
from edgetune_export.check.reference import Float, Sample
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.errors import ParityError

MAX_HALF_KL = 1e-3
"""Largest mean KL from the dequantized reference, in nats, where the export computes in float16 (2e-5 was seen)."""


@dataclass(frozen=True)
class Exactness(Predictions):
    """The written weights against the dequantized reference.

    Attributes:
        answers: answers that were read by both.
        answers_equal: along how many of them both choose the same token at every step.
        boxes: along how many of them the reference's choices have a box in them.
        boxes_equal: along how many of these both choose the same boxes.
    """

    answers: int
    answers_equal: int
    boxes: int
    boxes_equal: int


@dataclass(frozen=True)
class Drift:
    """The export as shipped against the merged checkpoint.

    Attributes:
        source: the data that the pictures and phrases are from, or why generated ones took their place.
        records: how many.
        mean_kl: mean KL(merged || export) of the next-token distributions along the merged model's answers, in nats.
        lost_information: that KL as a share of the KL to the uniform distribution.
        token_agreement: share of these steps with the same most likely token.
        answers_equal: share of the answers that are the merged model's, token by token.
        answers_unknown: how many of the merged model's answers were not found, for too much is different.
        boxes: answers of the merged model with a box in them.
        mean_iou: mean IoU of the export's boxes with them, None without any; min_iou is the smallest.
    """

    source: str
    records: int
    mean_kl: float
    lost_information: float
    token_agreement: float
    answers_equal: float
    answers_unknown: int
    boxes: int
    mean_iou: float | None
    min_iou: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def measure_exact(answers: Answers, samples: Sequence[Sample], logits: Sequence[Float]) -> Exactness:
    """Compare logits [steps, V] of the written graph, along some answers, with what the reference makes of them."""
    ours = [replace(sample, logits=rows) for sample, rows in zip(samples, logits, strict=True)]
    read = [
        (answers.read(sample.case, choices(sample)), answers.read(sample.case, choices(own)))
        for sample, own in zip(samples, ours, strict=True)
    ]
    boxes = [(expected.detections, actual.detections) for expected, actual in read if expected.detections]
    return Exactness(
        **asdict(compare([sample.logits for sample in samples], logits)),
        answers=len(samples),
        answers_equal=sum(choices(sample) == choices(own) for sample, own in zip(samples, ours, strict=True)),
        boxes=len(boxes),
        boxes_equal=sum(expected == actual for expected, actual in boxes),
    )


def require_exact(exact: Exactness, *, half: bool) -> None:
    """Raise `ParityError` unless the written weights do what the dequantized reference does."""
    what = "the written weights differ from the dequantized reference"
    if half:
        if not exact.mean_kl <= MAX_HALF_KL:
            raise ParityError(f"{what}: KL {exact.mean_kl:.2e} in float16, at most {MAX_HALF_KL:.2e} allowed")
        return
    exact.require_exact(what)
    if exact.answers_equal < exact.answers or exact.boxes_equal < exact.boxes:
        raise ParityError(
            f"{what}: {exact.answers_equal} of {exact.answers} answers and {exact.boxes_equal} of {exact.boxes} "
            "answers with boxes are equal"
        )


def measure_drift(
    answers: Answers, own: Sequence[Sample], ours: Sequence[Sample], theirs: Sequence[Sample], source: str
) -> Drift:
    """Compare the export as shipped with the merged model's answers.

    Args:
        answers: reads boxes.
        own: the export's own answers.
        ours: what it makes of the merged model's, see `own_answers`.
        theirs: what the merged model makes of them.
        source: where the questions come from.
    """
    found = [choices(sample) == sample.tokens for sample in theirs]
    overlaps = []
    for sample, free in itertools.compress(zip(theirs, own, strict=True), found):
        expected = answers.read(sample.case, sample.tokens).detections
        if expected:
            actual = answers.read(free.case, free.tokens).detections
            overlaps.append(sample_iou(_boxes(actual), _boxes(expected)))
    apart = compare([sample.logits for sample in theirs], [sample.logits for sample in ours])
    same = sum(
        free.tokens == sample.tokens for free, sample in itertools.compress(zip(own, theirs, strict=True), found)
    )
    return Drift(
        source=source,
        records=len(theirs),
        mean_kl=apart.mean_kl,
        lost_information=apart.lost_information,
        token_agreement=apart.token_agreement,
        answers_equal=same / len(theirs),
        answers_unknown=len(found) - sum(found),
        boxes=len(overlaps),
        mean_iou=float(np.mean(overlaps)) if overlaps else None,
        min_iou=float(np.min(overlaps)) if overlaps else None,
    )


def require_close(drift: Drift) -> None:
    """Raise `ParityError` where the answers are further from the merged model's than rounding explains."""
    if not drift.lost_information <= MAX_LOST_INFORMATION:
        raise ParityError(
            f"predictions are off on {drift.source}: KL {drift.mean_kl:.3f} from the merged model, "
            f"{drift.lost_information:.0%} of that of a blind guess",
            hint="calibrate with more samples, a smaller group size or more bits",
        )


def _boxes(detections: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([detection.box for detection in detections], np.float64).reshape(-1, 4)
