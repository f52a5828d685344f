"""The image-token budget: which areas of the resized pictures are worth measuring, and the smallest that is enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_bench.gate import Check, check_rows
from edgetune_runtime.bench.results import Measured, Results
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.load import upright_size
from edgetune_runtime.images.rules import bounded
from edgetune_runtime.images.smart import ImageSpec

RUNGS = 6
"""Areas of the ladder, each 1/√2 of the one before: the last is an eighth of what the pictures take."""


@dataclass(frozen=True)
class Tried:
    """One area that was tried.

    Attributes:
        row: what was measured at it.
        check: whether the accuracy that it lost is within the limit, and with which interval.
    """

    row: Measured
    check: Check


def ladder(spec: Preprocessing, images: Iterable[Path], folder: Path) -> tuple[int, ...]:
    """Return areas below what pictures take, in pixels, the largest first: whole image tokens, none under the least.

    Args:
        spec: of the bundle.
        images: the records' pictures; of the areas that they take the largest counts.
        folder: the bundle, for the message.

    Raises:
        InputError: the pictures take the least that the bundle allows, or its preprocessing has no such limit.
    """
    whole = bounded(spec, getattr(spec, "max_pixels", 0), folder)
    taken = min(whole.max_pixels, max(_area(whole, image) for image in images))
    token = whole.factor**2
    areas = [int(taken * 2 ** (-rung / 2)) // token * token for rung in range(1, RUNGS + 1)]
    fitting = tuple(dict.fromkeys(area for area in areas if max(whole.min_pixels, token) <= area < taken))
    if not fitting:
        raise InputError(
            f"{folder}: the pictures take {taken:,} pixels, and none of less than {whole.min_pixels:,} is allowed",
            hint="export again with a smaller --min-pixels, or name areas with --max-pixels",
        )
    return fitting


def tried(results: Results, metric: str, max_drop: float) -> list[Tried]:
    """Return what each area came to, the largest first; rows that failed are left out.

    Args:
        results: of rows at several areas and their baseline.
        metric: a key of `gate.DROPS`.
        max_drop: largest drop against the baseline, in points.

    Raises:
        InputError: the records have nothing that the metric counts, or only one picture does.
    """
    rows = sorted((row for row in results.ran if row.max_pixels is not None), key=lambda row: -(row.max_pixels or 0))
    found = []
    for row in rows:
        *_, check = check_rows(results, rows=[row.name], max_drop=max_drop, metrics=(metric,), unchecked=True)
        found.append(Tried(row, check))
    return found


def choose(found: Sequence[Tried]) -> Tried | None:
    """Return the smallest area that is within the limit, as all larger ones are.

    Areas are decided in a fixed order, from the largest to the first that is not within the limit. So the chance that
    any area is called good which is not stays that of a single decision (Maurer, Hothorn and Lehmacher 1995).
    """
    chosen = None
    for one in found:
        if one.check.outcome != "pass":
            break
        chosen = one
    return chosen


def _area(spec: ImageSpec, image: Path) -> int:
    geometry = spec.plan(*upright_size(image)).geometry
    return geometry.resized_width * geometry.resized_height
