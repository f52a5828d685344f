"""What a model answered to each record, as a worker writes it and as `predictions/NAME.jsonl` keeps it.

How good an answer is follows from the answer and its record, so it is computed from them and never read from a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from edgetune_runtime.bench import metrics
from edgetune_runtime.errors import InputError
from edgetune_runtime.timing import Timings
from edgetune_runtime.typed_json import Number, OrAbsent, Range, decode, encode

Pixel = Annotated[float, Range(-1e9, 1e9)]
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the original upright picture."""
Target = tuple[Pixel, Pixel, Pixel, Pixel]


@dataclass(frozen=True, kw_only=True)
class _Prediction:
    """What answers of both kinds have: `source` is the record's place, `text` what was asked, `raw` what was said.

    `number` is the record's, from 1, in the whole set where a shard of it was answered; `image_tokens` is how many the
    picture took.
    """

    source: str
    image: str
    text: str
    raw: str
    timings: Timings
    id: str | None = None
    number: OrAbsent[Number] = None
    image_tokens: OrAbsent[Number] = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the scores for those who read the file."""
        found: dict[str, Any] = encode(self)
        return found | {"tokens": self.timings.tokens}


@dataclass(frozen=True, kw_only=True)
class GroundPrediction(_Prediction):
    """An answer to "where is it": `truth` has no box for an absent object, and `scores` follow `boxes`."""

    truth: tuple[Target, ...]
    boxes: tuple[Box, ...]
    status: Literal["found", "refused", "unparsed"]
    kind: Literal["ground"] = "ground"
    complete: bool = True
    problem: str | None = None
    labels: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        """Refuse scores or labels that do not follow the boxes."""
        for name, given in (("labels", self.labels), ("scores", self.scores)):
            if given and len(given) != len(self.boxes):
                raise InputError(f"{len(given)} {name} for {len(self.boxes)} boxes")

    @cached_property
    def iou(self) -> float | None:
        """IoU (0-1) with the targets (see `metrics.sample_iou`); None for an absent object."""
        return metrics.sample_iou(self.boxes, self.truth) if self.truth else None

    @property
    def confidences(self) -> tuple[float | None, ...]:
        """The score of each box, None where the engine gave none."""
        return self.scores or (None,) * len(self.boxes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the IoU."""
        return super().to_dict() | {"iou": self.iou}


@dataclass(frozen=True, kw_only=True)
class VqaPrediction(_Prediction):
    """An answer in words; `expected` has the accepted ones."""

    expected: tuple[str, ...]
    kind: Literal["vqa"] = "vqa"

    def __post_init__(self) -> None:
        """Refuse a question without accepted answers, which nothing can be compared with."""
        if not self.expected:
            raise InputError("expected: there are no accepted answers")

    @cached_property
    def accuracy(self) -> float:
        """Soft VQA accuracy (0-1)."""
        return metrics.vqa_accuracy(self.raw, self.expected)

    @cached_property
    def anls(self) -> float:
        """Normalised Levenshtein similarity (0-1)."""
        return metrics.anls(self.raw, self.expected)

    @cached_property
    def exact(self) -> float:
        """1 where the answer is an accepted one, else 0."""
        return metrics.exact_match(self.raw, self.expected)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the scores."""
        return super().to_dict() | {"accuracy": self.accuracy, "anls": self.anls, "exact": self.exact}


Prediction = GroundPrediction | VqaPrediction


def read(value: object) -> Prediction:
    """Check one answer as JSON holds it.

    Raises:
        InputError: something is missing or wrong; the message names the field.
    """
    prediction: Prediction = decode(Prediction, value)  # type: ignore[arg-type]  # a union is no class
    return prediction


def grounding(predictions: Iterable[Prediction]) -> list[GroundPrediction]:
    """Those that answer with boxes."""
    return [prediction for prediction in predictions if isinstance(prediction, GroundPrediction)]


def questions(predictions: Iterable[Prediction]) -> list[VqaPrediction]:
    """Those that answer in words."""
    return [prediction for prediction in predictions if isinstance(prediction, VqaPrediction)]
