"""Accuracy against latency: intervals, rows that no other row beats in both, axes, and names beside their points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgetune_bench.report.html import accuracy, milliseconds, text
from edgetune_bench.report.html import section as wrap
from edgetune_runtime.bench.results import Measured, Results

_SIZES = {"broad": (1060, 430), "narrow": (360, 400)}  # one drawing for each width of the page, so text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 30, 44
"""Margins of a drawing, in pixels."""
LETTER, LINE = 6.7, 15.0
"""Width and height of a letter of a label, in pixels."""
KINDS = 6
"""Colours that the style has."""
_LOGARITHMIC = 8.0  # ratio of the longest to the shortest time from which the axis is
_AXIS_MARGIN = 0.06  # share of the range that is left free at both ends of an axis
_TICKS = 5
_GAP = 10.0  # pixels between a point and its name
_LINES_COUNT_FOR = 0.3  # crossing a whisker is bad, hiding a point or a name is worse


@dataclass(frozen=True)
class Point:
    """A row in the plot: median and 95th percentile in ms, accuracy and its interval in percent."""

    name: str
    group: str
    x: float
    tail: float
    y: float
    low: float
    high: float


def section(results: Results) -> str:
    """The plot, its legend and the rows on the Pareto line; nothing when no row has an accuracy."""
    measured = accuracy(results)
    if measured is None:
        return ""
    kind, key, title = measured
    grouping = "engine" if results.machines is None else "machine"
    points = [_point(row, getattr(row, kind), key, grouping) for row in results.ran if getattr(row, kind)]
    best = pareto(points)
    groups = list(dict.fromkeys(point.group for point in points))
    legend = "".join(f'<li><i class="k{i % KINDS}"></i>{text(group)}</li>' for i, group in enumerate(groups))
    drawings = "".join(_draw(points, best, groups, title, name, size) for name, size in _SIZES.items())
    names = ", ".join(f"<b>{text(point.name)}</b>" for point in best)
    lead = (
        f"Up and to the left is better. Dots are the median time of an answer, whiskers reach to the 95th percentile "
        f"and over the 95 % interval of the accuracy. No other row is both faster and more accurate than those on the "
        f"line: {names}."
    )
    return wrap("Accuracy against latency", lead, f'<ul class="legend">{legend}</ul>\n{drawings}')


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other is at least as fast and as accurate as, and better in one; fastest first."""
    return sorted(
        (p for p in points if not any(_beats(other, p) for other in points)), key=lambda point: (point.x, point.y)
    )


def _beats(other: Point, point: Point) -> bool:
    return other.x <= point.x and other.y >= point.y and (other.x < point.x or other.y > point.y)


def _point(row: Measured, scores: object, key: str, grouping: str) -> Point:
    total, y = row.stages.total, 100 * getattr(scores, key)
    interval = getattr(scores, f"{key}_interval")
    low, high = (100 * interval.low, 100 * interval.high) if interval else (y, y)
    return Point(row.name, str(getattr(row, grouping)), 1000 * total.p50, 1000 * total.p95, y, low, high)


def _draw(
    points: Sequence[Point],
    best: Sequence[Point],
    groups: Sequence[str],
    title: str,
    name: str,
    size: tuple[int, int],
) -> str:
    width, height = size
    times = [time for point in points for time in (point.x, point.tail)]
    across = logarithmic if max(times) > _LOGARITHMIC * min(times) > 0 else linear
    x = across(min(times), max(times), LEFT, width - RIGHT)
    y = linear(min(p.low for p in points), max(p.high for p in points), height - BOTTOM, TOP, bounds=(0.0, 100.0))
    labels = _labels(points, x, y, width, height)
    marks = "".join(_mark(p, x, y, groups.index(p.group) % KINDS, p in best) for p in points)
    names = "".join(
        f'<text class="name" x="{box.left:.1f}" y="{box.bottom - 4:.1f}">{text(point.name)}</text>'
        for point, box in zip(points, labels, strict=True)
    )
    told = "; ".join(f"{p.name}: {p.y:.1f} % at {milliseconds(p.x / 1000)} ms" for p in points)
    return (
        f'<svg class="scatter {name}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{text(f"{title} against latency. {told}")}">\n'
        f"{grid(x, y, width, height, title)}{_line(best, x, y)}{marks}{names}</svg>\n"
    )


def grid(x: Axis, y: Axis, width: int, height: int, title: str, across: str = "ms an answer") -> str:
    """Lines and numbers of both axes; `title` is what goes up, in percent, and `across` what goes to the right."""
    floor = height - BOTTOM
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick end" x="{LEFT - 7}" y="{y(t) + 4:.1f}">{t:g}</text>'
        for t in y.ticks
    ]
    parts += [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{floor}"/>'
        f'<text class="tick mid" x="{x(t):.1f}" y="{floor + 17}">{t:g}</text>'
        for t in x.ticks
    ]
    parts.append(f'<text class="axis mid" x="{(LEFT + width) / 2:.0f}" y="{height - 8}">{text(across)}</text>')
    parts.append(f'<text class="axis" x="4" y="14">{text(title)}, %</text>')
    return "".join(parts) + "\n"


def _line(best: Sequence[Point], x: Axis, y: Axis) -> str:
    """Steps from one best point to the next: between two of them, only the faster one is reachable."""
    path = "".join(
        (f"H{x(p.x):.1f}V{y(p.y):.1f}" if number else f"M{x(p.x):.1f} {y(p.y):.1f}") for number, p in enumerate(best)
    )
    return f'<path class="pareto" d="{path}"/>\n' if len(best) > 1 else ""


def _mark(point: Point, x: Axis, y: Axis, kind: int, on_line: bool) -> str:
    at, up = x(point.x), y(point.y)
    return (
        f'<g class="k{kind}"><line class="whisker" x1="{at:.1f}" x2="{x(point.tail):.1f}" y1="{up:.1f}" y2="{up:.1f}"/>'
        f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
        f'<circle cx="{at:.1f}" cy="{up:.1f}" r="{6 if on_line else 4.5}"{"" if on_line else " class=off"}>'
        f"<title>{text(point.name)}: {point.y:.1f} % [{point.low:.1f}, {point.high:.1f}], "
        f"p50 {point.x:.1f} ms, p95 {point.tail:.1f} ms</title></circle></g>\n"
    )


def _labels(points: Sequence[Point], x: Axis, y: Axis, width: int, height: int) -> list[Box]:
    area = Box(LEFT + 2, TOP, width - 4, height - BOTTOM - 2)
    dots = [Box(x(p.x) - 7, y(p.y) - 7, x(p.x) + 7, y(p.y) + 7) for p in points]
    bars = [Box(x(p.x) - 1, y(p.high), x(p.x) + 1, y(p.low)) for p in points]
    tails = [Box(x(p.x), y(p.y) - 1, x(p.tail), y(p.y) + 1) for p in points]
    sizes = [(LETTER * len(point.name), LINE) for point in points]
    return place([(x(p.x), y(p.y)) for p in points], sizes, area, dots, [*bars, *tails])


@dataclass(frozen=True)
class Axis:
    """Maps a value to a pixel; `ticks` are round values within its range."""

    ticks: tuple[float, ...]
    _place: Callable[[float], float]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self._place(value)


def linear(
    low: float, high: float, first: float, last: float, *, bounds: tuple[float, float] = (0.0, math.inf)
) -> Axis:
    """An axis from pixel `first` to `last` that holds `low` and `high` with a margin, but nothing out of bounds."""
    margin = _AXIS_MARGIN * (high - low) or 0.01 * max(abs(high), 1.0)
    start, end = max(low - margin, bounds[0] - margin / 2), min(high + margin, bounds[1] + margin / 2)
    rough = (end - start) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    inside = range(math.ceil(start / step), math.floor(end / step) + 1)
    ticks = tuple(round(step * i, 10) for i in inside if bounds[0] <= round(step * i, 10) <= bounds[1])
    return Axis(ticks, lambda value: first + (value - start) / (end - start) * (last - first))


def logarithmic(low: float, high: float, first: float, last: float) -> Axis:
    """The same on a logarithmic scale, for values above zero."""
    span = math.log10(high / low) * _AXIS_MARGIN
    start, end = math.log10(low) - span, math.log10(high) + span
    powers = range(math.floor(start), math.ceil(end) + 1)
    ticks = tuple(t for p in powers for t in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if start <= math.log10(t) <= end)
    return Axis(ticks, lambda value: first + (math.log10(value) - start) / (end - start) * (last - first))


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The common area in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, area: Box) -> float:
        """The part that leaves `area`, in square pixels."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(area)


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    dots: Sequence[Box],
    lines: Sequence[Box],
) -> list[Box]:
    """Choose a place for each name among those around its point, in turn, the one that covers least.

    Args:
        anchors: the points, in pixels.
        sizes: width and height of each name.
        area: where names should stay.
        dots: what must not be covered.
        lines: what is better not covered.
    """
    placed: list[Box] = []
    for anchor, size in zip(anchors, sizes, strict=True):
        taken = [*dots, *placed]

        def cost(box: Box, taken: list[Box] = taken) -> float:
            hidden = sum(box.overlap(other) for other in taken)
            crossed = sum(box.overlap(other) for other in lines)
            return hidden + _LINES_COUNT_FOR * crossed + 2 * box.outside(area)

        placed.append(min(_around(anchor, size), key=cost))
    return placed


def _around(anchor: tuple[float, float], size: tuple[float, float]) -> Iterator[Box]:
    """Places for a name, best first: beside the point above and below its whisker, then farther up and down."""
    (x, y), (width, height) = anchor, size
    for shift in (-0.75, 0.75, -1.7, 1.7, -2.6, 2.6, -3.5, 3.5):
        for left in (x + _GAP, x - _GAP - width, x - width / 2):
            top = y + shift * height - height / 2
            yield Box(left, top, left + width, top + height)
