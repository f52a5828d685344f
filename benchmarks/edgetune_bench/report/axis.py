"""Axes of a plot: from values to pixels, and where the ticks stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MARGIN = 0.06  # share of the range that is left free at both ends
_TICKS = 5


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
    margin = _MARGIN * (high - low) or 0.01 * max(abs(high), 1.0)
    start, end = max(low - margin, bounds[0] - margin / 2), min(high + margin, bounds[1] + margin / 2)
    rough = (end - start) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    inside = range(math.ceil(start / step), math.floor(end / step) + 1)
    ticks = tuple(round(step * i, 10) for i in inside if bounds[0] <= round(step * i, 10) <= bounds[1])
    return Axis(ticks, lambda value: first + (value - start) / (end - start) * (last - first))


def logarithmic(low: float, high: float, first: float, last: float) -> Axis:
    """The same on a logarithmic scale, for values above zero."""
    span = math.log10(high / low) * _MARGIN
    start, end = math.log10(low) - span, math.log10(high) + span
    powers = range(math.floor(start), math.ceil(end) + 1)
    ticks = tuple(t for p in powers for t in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if start <= math.log10(t) <= end)
    return Axis(ticks, lambda value: first + (math.log10(value) - start) / (end - start) * (last - first))
