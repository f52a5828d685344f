"""The figures of a row: accuracies with their intervals, differences to a baseline, and percentiles of times."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from edgetune_runtime.errors import InputError
from edgetune_runtime.typed_json import Change, Count, Number, OrAbsent, Range, Seconds, Share


def _check_order(**figures: float) -> None:
    for (lower, low), (upper, high) in pairwise(figures.items()):
        if low > high:
            raise InputError(
                f"its {lower} {low:g} is above its {upper} {high:g}", hint="measure again: no answers have such figures"
            )


@dataclass(frozen=True)
class Interval:
    """A share, or a difference of shares, with its interval, and the records and pictures it rests on."""

    value: Change
    low: Change
    high: Change
    records: Number
    images: Number

    def __post_init__(self) -> None:
        """Refuse an interval whose ends are the wrong way round."""
        _check_order(low=self.low, high=self.high)


@dataclass(frozen=True)
class ScoreInterval:
    """The same of a score that is no share: BLEU (0-100) and CIDEr-D (0-10)."""

    value: float
    low: float
    high: float
    records: Number
    images: Number

    def __post_init__(self) -> None:
        """Refuse an interval whose ends are the wrong way round."""
        _check_order(low=self.low, high=self.high)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO-style AP of boxes; all None, with the reason, where there is none."""

    ap: Share | None
    ap50: Share | None
    ap75: Share | None
    ap_small: Share | None
    ap_medium: Share | None
    ap_large: Share | None
    ap_interval: Interval | None
    reason: str | None


@dataclass(frozen=True)
class Grounding:
    """Accuracies of answers with boxes (`metrics.GroundingScores`); None where no record counts for one.

    `refused` counts all refusals, `refused_absent` those of absent objects, `unparsed` answers that are neither boxes
    nor a refusal, `truncated` those that break off. `coco` is there when it was asked for.
    """

    samples: Number
    present: Count
    acc50: Share | None
    acc75: Share | None
    acc90: Share | None
    miou: Share | None
    refusal_accuracy: Share | None
    refusal_precision: Share | None
    false_refusals: Share | None
    parse_failures: Share | None
    acc50_interval: Interval | None
    miou_interval: Interval | None
    refusal_accuracy_interval: Interval | None
    refusal_precision_interval: Interval | None
    refused: Count
    refused_absent: Count
    unparsed: Count
    truncated: Count
    acc75_interval: Interval | None = None
    acc90_interval: Interval | None = None
    parse_failures_interval: Interval | None = None
    coco: OrAbsent[AveragePrecision] = None


@dataclass(frozen=True)
class Vqa:
    """Accuracies of answers in words; BLEU and CIDEr-D are there when they were asked for."""

    samples: Number
    accuracy: Share
    accuracy_interval: Interval | None
    anls: Share
    anls_interval: Interval | None
    exact: Share
    exact_interval: Interval | None
    bleu: OrAbsent[Annotated[float, Range(0)]] = None
    bleu_signature: OrAbsent[str] = None
    bleu_interval: OrAbsent[ScoreInterval] = None
    cider: OrAbsent[Annotated[float, Range(0)]] = None
    cider_interval: OrAbsent[ScoreInterval] = None


@dataclass(frozen=True)
class McNemarTest:
    """Hits at IoU 0.5 that only the baseline and only the row has, and the exact two-sided p-value."""

    only_baseline: Count
    only_row: Count
    p: Share


@dataclass(frozen=True)
class WorstBox:
    """The record whose boxes are farthest from the baseline's."""

    iou: Share
    source: str


@dataclass(frozen=True)
class BoxDrift:
    """How far boxes are from the baseline's, whatever the truth is: mean IoU, share below 0.9, and the worst."""

    records: Number
    iou: Share
    iou_interval: Interval | None
    moved: Share
    moved_interval: Interval | None
    worst: WorstBox


@dataclass(frozen=True)
class Differences:
    """A row minus its baseline, record by record; None where no record has it, or one picture alone does."""

    acc50: Interval | None
    acc75: Interval | None
    acc90: Interval | None
    miou: Interval | None
    vqa: Interval | None
    mcnemar: McNemarTest | None
    drift: BoxDrift | None


@dataclass(frozen=True)
class Percentiles:
    """Seconds of a stage over the records."""

    p50: Seconds
    p95: Seconds
    p99: Seconds

    def __post_init__(self) -> None:
        """Refuse percentiles that no times have: a higher one is never the shorter time."""
        _check_order(p50=self.p50, p95=self.p95, p99=self.p99)


@dataclass(frozen=True)
class Stages:
    """Each stage of an answer (`timing.Timings`)."""

    preprocess: Percentiles
    vision: Percentiles
    prefill: Percentiles
    decode: Percentiles
    total: Percentiles
