"""Decide whether measured rows are good enough: drops in accuracy by their intervals, budgets by their figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from statistics import NormalDist
from typing import Any, Literal

from edgetune_runtime.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]
Row = Mapping[str, Any]

METRICS = {
    "acc@0.5": "acc50",
    "acc@0.75": "acc75",
    "acc@0.9": "acc90",
    "miou": "miou",
    "vqa": "vqa",
    "box-iou": "drift",
}
"""Metrics whose drop can be limited, by the names that people use. `box-iou` is the IoU of a row's boxes with the
baseline's; its drop is what is missing to 100 %."""


@dataclass(frozen=True)
class Budget:
    """A limit on a cost: what it is called, its unit, where in a row it is, and the factor into the unit."""

    title: str
    unit: str
    place: tuple[str, ...]
    factor: float

    def measured(self, row: Row) -> float | None:
        """The row's figure in the budget's unit, None when it was not measured."""
        value: Any = row
        for key in self.place:
            value = value.get(key) if value else None
        return None if value is None else float(value) * self.factor


BUDGETS = {
    "p50_ms": Budget("p50", "ms", ("stages", "total", "p50"), 1e3),
    "p95_ms": Budget("p95", "ms", ("stages", "total", "p95"), 1e3),
    "size_mb": Budget("size", "MB", ("size_bytes",), 1e-6),
    "memory_mb": Budget("memory", "MB", ("peak_rss_bytes",), 1e-6),
    "gpu_mb": Budget("GPU memory", "MB", ("peak_gpu_bytes",), 1e-6),
    "cold_start_s": Budget("cold start", "s", ("cold_start_s",), 1.0),
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
        upper: upper end of its interval.
        limit: the largest value allowed.
        records_needed: about how many records would tell.
    """

    row: str
    name: str
    outcome: Outcome
    figure: str
    remark: str = ""
    value: float | None = None
    upper: float | None = None
    limit: float | None = None
    records_needed: int | None = None

    @property
    def message(self) -> str:
        """All of it in one line."""
        allowed = "" if self.limit is None else f", at most {self.limit:g} allowed"
        return f"{self.figure}{allowed}" + (f": {self.remark}" if self.remark else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


def check_rows(
    results: Mapping[str, Any],
    *,
    rows: Sequence[str] = (),
    max_drop: float | None = None,
    metrics: Sequence[str] = ("acc@0.5",),
    budgets: Mapping[str, float] | None = None,
) -> list[Check]:
    """Check rows of a measurement.

    Args:
        results: as in results.json.
        rows: names of the rows; all but the baseline unless given.
        max_drop: largest drop of each metric against the baseline, in points (hundredths).
        metrics: keys of `METRICS`.
        budgets: largest values by key of `BUDGETS`.

    Raises:
        InputError: a row or a figure is not in the results, or there is no baseline to have dropped from.
    """
    found = []
    for row in _chosen(results, rows):
        if row["status"] == "failed":
            found.append(Check(row["name"], "runs", "fail", f"exit code {row['exit_code']}", row["reason"]))
            continue
        found.append(Check(row["name"], "runs", "pass", f"{results['data']['records']} records"))
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
    return NormalDist().inv_cdf((1 + level) / 2) / (images + 2)


def _chosen(results: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    known = {row["name"]: row for row in results["rows"]}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"rows: {', '.join(known)}"
            raise InputError(f"no row {name!r} in the results", hint=hint)
    rows = [known[name] for name in names] or [row for row in results["rows"] if not row["baseline"]]
    if not rows:
        raise InputError("the results hold the baseline only, so there is no row to check", hint="name it with --row")
    return rows


def _drop(results: Mapping[str, Any], row: Row, metric: str, limit: float) -> Check:
    name = f"drop of {metric}"
    reference = next((other for other in results["rows"] if other["baseline"]), None)
    if reference is None:
        raise InputError("the results have no baseline to drop from", hint="measure again with --baseline TARGET")
    if row["baseline"]:
        raise InputError(f"{row['name']} is the baseline, which cannot drop", hint="name other rows with --row")
    if reference["status"] == "failed":
        return Check(row["name"], name, "fail", "none", f"the baseline {reference['name']} failed")
    interval = _interval(row, metric)
    if interval is None:
        raise InputError(
            f"{row['name']}: no difference of {metric} in the results",
            hint="the records have nothing that it counts, or only one picture does",
        )
    level = results["statistics"]["level"]
    drop, spread = -100 * interval["value"], 100 * (interval["value"] - interval["low"])
    least = 100 * least_half_width(int(interval["images"]), level)
    upper = drop + max(spread, least)
    low = -100 * interval["high"]
    figure = f"{_hundredths(drop)} points [{_hundredths(low)}, {_hundredths(upper)}]"
    if upper <= limit:
        return Check(row["name"], name, "pass", figure, "", drop, upper, limit)
    if drop > limit:
        doubt = ", with more records it may be less" if low <= limit else ""
        return Check(row["name"], name, "fail", figure, f"{drop - limit:.2f} points over{doubt}", drop, upper, limit)
    needed = _records_needed(interval, limit - drop, spread, level)
    remark = f"the upper end of its interval is {upper - limit:.2f} points over"
    remark += f"; about {needed:,} records would tell, there are {interval['records']:,}" if needed else ""
    # An interval wider than the limit would fail a row that lost nothing: that says more of the records than of it.
    outcome: Outcome = "inconclusive" if upper - drop > limit else "fail"
    return Check(row["name"], name, outcome, figure, remark, drop, upper, limit, needed)


def _hundredths(points: float) -> str:
    return f"{round(points, 2) + 0.0:.2f}"


def _interval(row: Row, metric: str) -> Mapping[str, float] | None:
    delta = row.get("delta") or {}
    if metric != "box-iou":
        interval: Mapping[str, float] | None = delta.get(METRICS[metric])
        return interval
    own = (delta.get("drift") or {}).get("iou_interval")
    return own and own | {key: own[key] - 1 for key in ("value", "low", "high")}


def _records_needed(interval: Mapping[str, float], margin: float, spread: float, level: float) -> int | None:
    """Records at which the upper end would meet the limit if the drop stayed as it is; None if no number would do.

    The spread shrinks with the root of their number, the least half width with their number.
    """
    if margin <= 0:
        return None
    by_spread = interval["records"] * (spread / margin) ** 2
    images = 100 * least_half_width(0, level) * 2 / margin - 2
    return math.ceil(max(by_spread, images * interval["records"] / interval["images"]))


def _budget(row: Row, key: str, limit: float) -> Check:
    budget = BUDGETS[key]
    measured = budget.measured(row)
    if measured is None:
        raise InputError(f"{row['name']}: {budget.title} was not measured", hint="leave this limit out")
    figure = f"{measured:.4g} {budget.unit}"
    if measured <= limit:
        return Check(row["name"], budget.title, "pass", figure, "", measured, None, limit)
    remark = f"{measured - limit:.3g} {budget.unit} over"
    return Check(row["name"], budget.title, "fail", figure, remark, measured, None, limit)
