"""Decide whether measured rows are good enough: accuracies and their drops by intervals, costs by their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from statistics import NormalDist
from typing import Any, Literal

from edgetune_runtime.bench.figures import Interval
from edgetune_runtime.bench.results import Failed, Measured, Results, Row
from edgetune_runtime.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Metric:
    """An accuracy by the name that people use: its share (0-1) with the interval, and its change to the baseline.

    Either gives None where the results do not have it; `share` gives no interval where one picture alone has it.
    """

    share: Callable[[Measured], tuple[float | None, Interval | None]]
    change: Callable[[Measured], Interval | None] | None = None


def _figure(part: str, key: str, delta: str | None = None) -> Metric:
    """The figure `key` of a row's `ground` or `vqa`, whose change is called `delta`."""

    def share(row: Measured) -> tuple[float | None, Interval | None]:
        figures = getattr(row, part)
        return getattr(figures, key, None), getattr(figures, f"{key}_interval", None)

    return Metric(share, None if delta is None else lambda row: getattr(row.delta, delta, None))


def _valid_box(row: Measured) -> tuple[float | None, Interval | None]:
    ground = row.ground
    if ground is None or ground.parse_failures is None:
        return None, None
    interval = ground.parse_failures_interval
    turned = interval and replace(interval, value=1 - interval.value, low=1 - interval.high, high=1 - interval.low)
    return 1 - ground.parse_failures, turned


def _box_iou(row: Measured) -> tuple[float | None, Interval | None]:
    drift = row.delta and row.delta.drift
    return (drift.iou, drift.iou_interval) if drift else (None, None)


def _box_iou_change(row: Measured) -> Interval | None:
    _, own = _box_iou(row)
    return own and replace(own, value=own.value - 1, low=own.low - 1, high=own.high - 1)


METRICS: Mapping[str, Metric] = {
    "acc@0.5": _figure("ground", "acc50", "acc50"),
    "acc@0.75": _figure("ground", "acc75", "acc75"),
    "acc@0.9": _figure("ground", "acc90", "acc90"),
    "miou": _figure("ground", "miou", "miou"),
    "vqa": _figure("vqa", "accuracy", "vqa"),
    "box-iou": Metric(_box_iou, _box_iou_change),
    "refusal-recall": _figure("ground", "refusal_accuracy"),
    "refusal-precision": _figure("ground", "refusal_precision"),
    "valid-box": Metric(_valid_box),
    "anls": _figure("vqa", "anls"),
}
"""Metrics that can be limited. `box-iou` is the IoU of a row's boxes with the baseline's; its drop is what is missing
to 100 %. `valid-box` is the share of grounding answers that are boxes or a refusal."""

DROPS = tuple(name for name, metric in METRICS.items() if metric.change is not None)
"""Metrics whose drop against the baseline is measured."""


@dataclass(frozen=True)
class Budget:
    """A limit on a cost: what it is called, its unit, the row's figure, and the factor into the unit."""

    title: str
    unit: str
    figure: Callable[[Measured], float | None]
    factor: float


BUDGETS = {
    "p50_ms": Budget("p50", "ms", lambda row: row.stages.total.p50, 1e3),
    "p95_ms": Budget("p95", "ms", lambda row: row.stages.total.p95, 1e3),
    "size_mb": Budget("size", "MB", lambda row: row.size_bytes, 1e-6),
    "memory_mb": Budget("memory", "MB", lambda row: row.peak_rss_bytes, 1e-6),
    "gpu_mb": Budget("GPU memory", "MB", lambda row: row.peak_gpu_bytes, 1e-6),
    "cold_start_s": Budget("cold start", "s", lambda row: row.cold_start_s, 1.0),
}
"""Costs that can be limited. Times are of one answer, from picture to text; MB are 10^6 bytes."""


@dataclass(frozen=True)
class Check:
    """One decision about one row.

    Attributes:
        row: its name.
        name: what was checked.
        outcome: "inconclusive" is for too few records: their interval alone is wider than the limit.
        figure: what was measured, with unit and interval, for a person.
        remark: by how much it is over, or why it cannot be told.
        value: what was measured, in the unit of `limit`.
        upper: upper end of a drop's interval.
        lower: lower end of an accuracy's interval.
        limit: the largest value allowed.
        floor: the least value allowed.
        records_needed: about how many records would tell.
    """

    row: str
    name: str
    outcome: Outcome
    figure: str
    remark: str = ""
    value: float | None = None
    upper: float | None = None
    lower: float | None = None
    limit: float | None = None
    floor: float | None = None
    records_needed: int | None = None

    @property
    def message(self) -> str:
        """All of it in one line."""
        allowed = "" if self.limit is None else f", at most {self.limit:g} allowed"
        allowed += "" if self.floor is None else f", at least {self.floor:g} wanted"
        return f"{self.figure}{allowed}" + (f": {self.remark}" if self.remark else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


def check_rows(
    results: Results,
    *,
    rows: Sequence[str] = (),
    max_drop: float | None = None,
    metrics: Sequence[str] = ("acc@0.5",),
    floors: Mapping[str, float] | None = None,
    budgets: Mapping[str, float] | None = None,
    unchecked: bool = False,
) -> list[Check]:
    """Check rows of a measurement.

    Args:
        results: of `edgetune bench`, of one machine or joined.
        rows: names of the rows; all but the baseline unless given.
        max_drop: largest drop of each metric against the baseline, in points (hundredths).
        metrics: keys of `DROPS`.
        floors: least values in percent, by key of `METRICS`.
        budgets: largest values by key of `BUDGETS`.
        unchecked: whether a bundle may pass that was exported without its self-check.

    Raises:
        InputError: a row or a figure is not in the results, there is no baseline to have dropped from, or the results
            are those of a shard.
    """
    if results.shard is not None:
        raise InputError(
            f"the results are those of shard {results.shard}, which says nothing of the whole set",
            hint="join all shards with edgetune bench merge RESULTS... --output DIR, and check what it writes",
        )
    found = []
    for row in _chosen(results, rows):
        if isinstance(row, Failed):
            found.append(Check(row.name, "runs", "fail", f"exit code {row.exit_code}", row.reason))
            continue
        found.append(Check(row.name, "runs", "pass", f"{results.data.records} records"))
        if row.self_check == "none" and not unchecked:
            found.append(Check(row.name, "self-check", "fail", "none", "it was exported with --check none"))
        found += [_floor(results, row, metric, least) for metric, least in (floors or {}).items()]
        if max_drop is not None:
            found += [_drop(results, row, metric, max_drop) for metric in metrics]
        found += [_budget(row, key, limit) for key, limit in (budgets or {}).items()]
    return found


def worst(checks: Sequence[Check]) -> Outcome:
    """The outcome of all: one failure fails, and nothing passes with a check that could not tell."""
    outcomes = {check.outcome for check in checks}
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


def least_half_width(images: int, level: float = 0.95) -> float:
    """The half width (0-1) that an interval of a difference has at least, however much `images` pictures agree.

    Resampling pictures of which none differs gives an interval of no width, as if one more could not differ either.
    This is the adjusted Wald interval of Agresti & Min (2005), "Simple improved confidence intervals for comparing
    matched proportions", for that case: half an observation added to each cell.
    """
    return _quantile(level) / (images + 2)


def least_width_below(images: int, level: float = 0.95) -> float:
    """How far (0-1) the interval of a share reaches below it at least, however much `images` pictures agree.

    This is the score interval of Wilson (1927) for pictures that are all right: z² / (n + z²).
    """
    square = _quantile(level) ** 2
    return square / (images + square)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _chosen(results: Results, names: Sequence[str]) -> list[Row]:
    known = {row.name: row for row in results.rows}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"rows: {', '.join(known)}"
            raise InputError(f"no row {name!r} in the results", hint=hint)
    rows = [known[name] for name in names] or [row for row in results.rows if not row.baseline]
    if not rows:
        raise InputError("the results hold the baseline only, so there is no row to check", hint="name it with --row")
    return rows


def _floor(results: Results, row: Measured, metric: str, least: float) -> Check:
    """Whether a share is at least `least` percent, with the lower end of its interval."""
    share, interval = METRICS[metric].share(row)
    if share is None:
        raise InputError(f"{row.name}: no {metric} in the results", hint="the records have nothing that it counts")
    value = round(100 * share, 9)  # 100 times 0.57 is a little less than 57
    check = Check(row.name, metric, "fail", f"{_hundredths(value)} %", value=value, floor=least)
    if value < least:
        return replace(check, remark=f"{least - value:.2f} points under")
    if interval is None:
        remark = "the results have no interval for it: only one picture counts, or an earlier version measured"
        return replace(check, outcome="inconclusive", remark=remark)
    level = results.statistics.level
    spread = 100 * (interval.value - interval.low)
    lower = max(0.0, value - max(spread, 100 * least_width_below(interval.images, level)))
    ends = f"[{_hundredths(lower)}, {_hundredths(100 * interval.high)}]"
    check = replace(check, figure=f"{check.figure} {ends}", lower=lower)
    if lower >= least:
        return replace(check, outcome="pass")
    needed = _records_above(interval, value - least, spread, level)
    remark = f"the lower end of its interval is {least - lower:.2f} points under"
    remark += f"; about {needed:,} records would tell, there are {interval.records:,}" if needed else ""
    return replace(check, outcome="inconclusive", remark=remark, records_needed=needed)


def _drop(results: Results, row: Measured, metric: str, limit: float) -> Check:
    name = f"drop of {metric}"
    reference = next((other for other in results.rows if other.baseline), None)
    if reference is None:
        raise InputError("the results have no baseline to drop from", hint="measure again with --baseline TARGET")
    if row.baseline:
        raise InputError(f"{row.name} is the baseline, which cannot drop", hint="name other rows with --row")
    if isinstance(reference, Failed):
        return Check(row.name, name, "fail", "none", f"the baseline {reference.name} failed")
    change = METRICS[metric].change
    interval = change(row) if change else None
    if interval is None:
        raise InputError(
            f"{row.name}: no difference of {metric} in the results",
            hint="the records have nothing that it counts, or only one picture does",
        )
    level = results.statistics.level
    drop, spread = -100 * interval.value, 100 * (interval.value - interval.low)
    least = 100 * least_half_width(interval.images, level)
    upper = drop + max(spread, least)
    low = -100 * interval.high
    figure = f"{_hundredths(drop)} points [{_hundredths(low)}, {_hundredths(upper)}]"
    check = Check(row.name, name, "fail", figure, value=drop, upper=upper, limit=limit)
    if upper <= limit:
        return replace(check, outcome="pass")
    if drop > limit:
        doubt = ", with more records it may be less" if low <= limit else ""
        return replace(check, remark=f"{drop - limit:.2f} points over{doubt}")
    needed = _records_needed(interval, limit - drop, spread, level)
    remark = f"the upper end of its interval is {upper - limit:.2f} points over"
    remark += f"; about {needed:,} records would tell, there are {interval.records:,}" if needed else ""
    # An interval wider than the limit would fail a row that lost nothing: that says more of the records than of it.
    outcome: Outcome = "inconclusive" if upper - drop > limit else "fail"
    return replace(check, outcome=outcome, remark=remark, records_needed=needed)


def _hundredths(points: float) -> str:
    return f"{round(points, 2) + 0.0:.2f}"


def _records_needed(interval: Interval, margin: float, spread: float, level: float) -> int | None:
    """Records at which the upper end would meet the limit if the drop stayed as it is; None if no number would do.

    The spread shrinks with the root of their number, the least half width with their number.
    """
    if margin <= 0:
        return None
    by_spread = interval.records * (spread / margin) ** 2
    images = 100 * least_half_width(0, level) * 2 / margin - 2
    return math.ceil(max(by_spread, images * interval.records / interval.images))


def _records_above(interval: Interval, margin: float, spread: float, level: float) -> int | None:
    """The same for the lower end of a share."""
    if margin <= 0:
        return None
    images = (100 / margin - 1) * _quantile(level) ** 2
    return math.ceil(max(interval.records * (spread / margin) ** 2, images * interval.records / interval.images))


def _budget(row: Measured, key: str, limit: float) -> Check:
    budget = BUDGETS[key]
    figure = budget.figure(row)
    if figure is None:
        raise InputError(f"{row.name}: {budget.title} was not measured", hint="leave this limit out")
    measured = figure * budget.factor
    check = Check(row.name, budget.title, "pass", f"{measured:.4g} {budget.unit}", value=measured, limit=limit)
    if measured <= limit:
        return check
    return replace(check, outcome="fail", remark=f"{measured - limit:.3g} {budget.unit} over")
