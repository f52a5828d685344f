"""Rows that are one model at several bounds of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune_runtime.bench.results import Measured, Row
from edgetune_runtime.pixels import area_text


@dataclass(frozen=True)
class Curve:
    """One model: its name without a bound, and its rows, the smallest pictures first."""

    name: str
    rows: Sequence[Measured]


def curves(rows: Sequence[Row]) -> list[Curve]:
    """Return the models that ran at two bounds or more; its own limits count as one."""
    groups: dict[tuple[str, str, str | None], list[Measured]] = {}
    for row in rows:
        if isinstance(row, Measured):
            groups.setdefault((row.path, row.engine, row.machine), []).append(row)
    several = [group for group in groups.values() if len({row.max_pixels for row in group}) > 1]
    return [Curve(_name(group), sorted(group, key=_size)) for group in several]


def bound_text(row: Measured) -> str:
    """The bound of a row's pictures, for people."""
    return "own" if row.max_pixels is None else area_text(row.max_pixels)


def _size(row: Measured) -> tuple[float, float]:
    return row.image_tokens or 0.0, row.max_pixels or float("inf")


def _name(group: Sequence[Measured]) -> str:
    bounded = next(row for row in group if row.max_pixels is not None)
    return bounded.name.replace(f"@{bound_text(bounded)}", "", 1)
