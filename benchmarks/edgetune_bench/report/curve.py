"""What a bound of the pictures costs: accuracy against the time of an answer, and against its image tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetune_bench.curves import Curve, bound_text, curves
from edgetune_bench.report.html import DASH, Column, head, milliseconds, percent, table, text
from edgetune_bench.report.html import section as wrap
from edgetune_bench.report.scatter import (
    BOTTOM,
    KINDS,
    LEFT,
    LETTER,
    LINE,
    RIGHT,
    TOP,
    Axis,
    Box,
    grid,
    linear,
    logarithmic,
    place,
)
from edgetune_runtime.bench.results import Measured, Results

_SIZES = {"broad": (520, 380), "narrow": (360, 340)}
_LOGARITHMIC = 4.0  # ratio of the largest to the smallest value from which the axis is


@dataclass(frozen=True)
class _Line:
    """One accuracy of one model: (x, share) of each row, with the rows."""

    kind: int
    finer: bool
    rows: Sequence[Measured]
    shares: Sequence[float]


def section(results: Results) -> str:
    """Both drawings and their table; nothing without rows that differ in their bounds alone."""
    found = curves(results.ran)
    measures = _measures(found)
    if not measures:
        return ""
    names = "".join(f'<li><i class="k{i % KINDS}"></i>{text(curve.name)}</li>' for i, curve in enumerate(found))
    dashes = "".join(
        f'<li><i class="dash{"" if finer else " full"}"></i>{text(title)}</li>'
        for finer, (title, _) in enumerate(measures)
    )
    lines = [
        _Line(kind % KINDS, bool(finer), curve.rows, [value for row in curve.rows if (value := share(row)) is not None])
        for kind, curve in enumerate(found)
        for finer, (_, share) in enumerate(measures)
    ]
    whole = [line for line in lines if len(line.shares) == len(line.rows)]
    title = " and ".join(title for title, _ in measures)
    axes: dict[str, Callable[[Measured], float]] = {
        "ms an answer": lambda row: 1000 * row.stages.total.p50,
        "image tokens of a picture": lambda row: row.image_tokens or 0.0,
    }
    pairs = "".join(
        f'<div class="pair">{"".join(_draw(whole, across, value, title, name, size) for across, value in axes.items())}'
        "</div>\n"
        for name, size in _SIZES.items()
    )
    lead = (
        "Each point is a bound of the resized pictures' area, in pixels; “own” is the model's. Times are medians, "
        "image tokens those of the median picture. Boxes are of the original picture at every bound."
    )
    return wrap("Image-token budget", lead, f'<ul class="legend">{names}{dashes}</ul>\n{pairs}{_table(found)}')


def _measures(found: Sequence[Curve]) -> list[tuple[str, Callable[[Measured], float | None]]]:
    rows = [row for curve in found for row in curve.rows]
    if any(row.ground and row.ground.acc50 is not None for row in rows):
        return [
            ("Acc@0.5", lambda row: row.ground.acc50 if row.ground else None),
            ("Acc@0.75", lambda row: row.ground.acc75 if row.ground else None),
        ]
    asked = any(row.vqa for row in rows)
    return [("VQA accuracy", lambda row: row.vqa.accuracy if row.vqa else None)] if asked else []


def _draw(
    lines: Sequence[_Line],
    across: str,
    value: Callable[[Measured], float],
    title: str,
    name: str,
    size: tuple[int, int],
) -> str:
    width, height = size
    values = [value(row) for line in lines for row in line.rows]
    shares = [100 * share for line in lines for share in line.shares]
    scale = logarithmic if max(values) > _LOGARITHMIC * min(values) > 0 else linear
    x = scale(min(values), max(values), LEFT, width - RIGHT)
    y = linear(min(shares), max(shares), height - BOTTOM, TOP, bounds=(0.0, 100.0))
    drawn = "".join(_path(line, value, x, y) for line in lines)
    told = "; ".join(
        f"{row.name}: {100 * share:.1f} % at {value(row):.4g}"
        for line in lines
        for row, share in zip(line.rows, line.shares, strict=True)
    )
    return (
        f'<svg class="scatter {name}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{text(f"{title} against {across}. {told}")}">\n'
        f"{grid(x, y, width, height, title, across)}{drawn}{_names(lines, value, x, y, size)}</svg>\n"
    )


def _path(line: _Line, value: Callable[[Measured], float], x: Axis, y: Axis) -> str:
    places = [(x(value(row)), y(100 * share)) for row, share in zip(line.rows, line.shares, strict=True)]
    path = "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    dots = "".join(
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4.5"{" class=off" if line.finer else ""}><title>'
        f"{text(row.name)}: {100 * share:.1f} %, {value(row):.4g}</title></circle>"
        for (left, top), row, share in zip(places, line.rows, line.shares, strict=True)
    )
    return f'<g class="k{line.kind}"><path class="curve{" finer" if line.finer else ""}" d="M{path}"/>{dots}</g>\n'


def _names(lines: Sequence[_Line], value: Callable[[Measured], float], x: Axis, y: Axis, size: tuple[int, int]) -> str:
    """The bounds beside the points of the coarser accuracy."""
    width, height = size
    points = [
        (line.finer, bound_text(row), x(value(row)), y(100 * share))
        for line in lines
        for row, share in zip(line.rows, line.shares, strict=True)
    ]
    dots = [Box(left - 7, top - 7, left + 7, top + 7) for _, _, left, top in points]
    named = [(name, left, top) for finer, name, left, top in points if not finer]
    boxes = place(
        [(left, top) for _, left, top in named],
        [(LETTER * len(name), LINE) for name, _, _ in named],
        Box(LEFT + 2, TOP, width - 4, height - BOTTOM - 2),
        dots,
        [],
    )
    return "".join(
        f'<text class="name" x="{box.left:.1f}" y="{box.bottom - 4:.1f}">{text(name)}</text>'
        for (name, _, _), box in zip(named, boxes, strict=True)
    )


def _table(found: Sequence[Curve]) -> str:
    rows = [row for curve in found for row in curve.rows]

    def share(row: Measured, key: str) -> str:
        return percent(getattr(row.ground, key, None), getattr(row.ground, f"{key}_interval", None))

    def change(row: Measured) -> str:
        interval = row.delta and row.delta.acc50
        return percent(interval.value, interval, signed=True) if interval else DASH

    columns = [
        Column("bound", [DASH if row.max_pixels is None else f"{row.max_pixels:,}" for row in rows], "pixels"),
        Column("image tokens", [DASH if row.image_tokens is None else f"{row.image_tokens:,.0f}" for row in rows]),
        Column("Acc@0.5", [share(row, "acc50") for row in rows], "%"),
        Column("Acc@0.75", [share(row, "acc75") for row in rows], "%"),
        Column("Δ", [change(row) for row in rows], "points"),
        Column("VQA", [percent(row.vqa.accuracy) if row.vqa else DASH for row in rows], "%"),
        Column("p50", [milliseconds(row.stages.total.p50) for row in rows], "ms"),
        Column("vision", [milliseconds(row.stages.vision.p50) for row in rows], "ms"),
    ]
    shown = [column for column in columns if any(cell != DASH for cell in column.cells)]
    return table("Accuracy and time at every bound of the pictures", [head(row) for row in rows], shown)
