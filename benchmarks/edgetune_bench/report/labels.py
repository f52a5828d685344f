"""Place the names of points so that they can be read: beside their point, off the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_GAP = 10.0  # pixels between a point and its name
_LINES_COUNT_FOR = 0.3  # crossing a whisker is bad, hiding a point or a name is worse


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
