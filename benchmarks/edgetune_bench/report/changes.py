"""What a row gives up against the baseline: accuracy, and how far its boxes moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_bench.report.html import DASH, Column, head, percent, points, ran, table
from edgetune_bench.report.html import section as wrap

Interval = Mapping[str, float]


def section(results: Mapping[str, Any]) -> str:
    """Differences with their intervals drawn on one scale; nothing without a baseline."""
    rows = [row for row in ran(results) if row.get("delta")]
    if not rows:
        return ""
    columns = []
    for key, title in (("acc50", "Δ Acc@0.5"), ("miou", "Δ mIoU"), ("vqa", "Δ VQA")):
        intervals = [row["delta"].get(key) for row in rows]
        if any(intervals):
            columns.append(Column(title, _plots(intervals), "points", wide=True))
    tests = [row["delta"].get("mcnemar") for row in rows]
    if any(tests):
        columns.append(Column("McNemar", [f"{test['p']:.2g}" if test else DASH for test in tests], "p"))
    drifts = [row["delta"].get("drift") for row in rows]
    if any(drifts):
        boxes = [percent(d["iou"], d["iou_interval"]) if d else DASH for d in drifts]
        moved = [percent(d["moved"], d["moved_interval"]) if d else DASH for d in drifts]
        worst = [percent(d["worst"]["iou"]) if d else DASH for d in drifts]
        columns.append(Column("box IoU", boxes, "% to baseline"))
        columns.append(Column("moved", moved, "% below 0.9"))
        columns.append(Column("worst", worst, "IoU, %"))
    lead = (
        "Record by record against the baseline. An interval that crosses the line may be chance. "
        "Box IoU compares a row's boxes with the baseline's, whatever the truth is."
    )
    return wrap(
        "Against the baseline", lead, table("Differences to the baseline", [head(row) for row in rows], columns)
    )


def _plots(intervals: Sequence[Interval | None]) -> list[str]:
    """A dot and a bar for each interval, all on the scale that holds every one of them and zero."""
    known = [interval for interval in intervals if interval]
    low = min(0.0, *(interval["low"] for interval in known))
    high = max(0.0, *(interval["high"] for interval in known))
    margin = 0.06 * (high - low) or 0.01
    low, width = low - margin, high - low + 2 * margin

    def place(value: float) -> float:
        return 100 * (value - low) / width

    plots: list[str] = []
    for interval in intervals:
        if interval is None:
            plots.append(DASH)
            continue
        left, right = place(interval["low"]), place(interval["high"])
        crosses = interval["low"] <= 0 <= interval["high"]
        kind = "unsure" if crosses else "better" if interval["value"] > 0 else "worse"
        value, below, above = (points(interval[key], signed=True) for key in ("value", "low", "high"))
        plots.append(
            f'<span class="plot {kind}" aria-hidden="true">'
            f'<i class="zero" style="left:{place(0.0):.2f}%"></i>'
            f'<i class="range" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
            f'<i class="dot" style="left:{place(interval["value"]):.2f}%"></i></span>'
            f'{value} <span class="muted">[{below}, {above}]</span>'
        )
    return plots
