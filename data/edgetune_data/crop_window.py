"""Where to cut: a window of whole pixels around boxes, with a margin, size rules and the picture's edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgetune_data.settings import CropRules
from edgetune_runtime.records.dialogue import Place

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels of the original upright picture, x2 and y2 exclusive."""


def window(places: Sequence[Place], width: int, height: int, rules: CropRules) -> Window:
    """Return the window around boxes and points of a picture of this size in pixels.

    All of them lie inside it, whatever the rules; it lies inside the picture and has at least one pixel.
    """
    xs = [number for place in places for number in place.numbers[::2]]
    ys = [number for place in places for number in place.numbers[1::2]]
    low, high, sizes = (min(xs), min(ys)), (max(xs), max(ys)), (width, height)
    inner = [_whole(low[axis], high[axis], sizes[axis]) for axis in (0, 1)]
    lengths = []
    for axis in (0, 1):
        extent = high[axis] - low[axis]
        wanted = max(math.ceil(extent * (1 + 2 * rules.margin)), rules.min_size)
        if rules.max_size is not None:
            wanted = min(wanted, rules.max_size)
        lengths.append(max(wanted, inner[axis][1] - inner[axis][0]))
    for axis in (0, 1):
        lengths[axis] = max(lengths[axis], math.ceil(lengths[1 - axis] / rules.max_aspect))
    (x1, x2), (y1, y2) = (_fit(inner[axis], lengths[axis], sizes[axis]) for axis in (0, 1))
    return x1, y1, x2, y2


def _whole(low: float, high: float, size: int) -> tuple[int, int]:
    """Return whole pixels around an extent: a point, or the edge of the picture, takes the pixel beside it."""
    start = min(math.floor(low), size - 1)
    return start, max(math.ceil(high), start + 1)


def _fit(inner: tuple[int, int], length: int, size: int) -> tuple[int, int]:
    """Return `length` pixels with `inner` in the middle, moved (and at last shortened) to lie within `size`."""
    length = min(length, size)
    start = (inner[0] + inner[1] - length) // 2
    # The window moves before it shrinks: what is asked for is a size, and context on one side is better than none.
    start = min(max(start, 0), size - length)
    return start, start + length


def moved_into(place: Place, cut: Window, min_visible: float) -> tuple[Place | None, float]:
    """Return a box or point in pixels of the crop, and how much of it is visible there (0-1).

    A box is cut at the crop's edge. None stands for one that is not in the crop any more: a point outside of it, or a
    box of which less than `min_visible` is inside.
    """
    x1, y1, x2, y2 = cut
    if len(place.numbers) == 2:
        x, y = place.numbers
        inside = x1 <= x <= x2 and y1 <= y <= y2
        return (Place((x - x1, y - y1), place.image), 1.0) if inside else (None, 0.0)
    left, top, right, bottom = place.numbers
    kept = (max(left, x1), max(top, y1), min(right, x2), min(bottom, y2))
    if kept[0] >= kept[2] or kept[1] >= kept[3]:
        return None, 0.0
    visible = (kept[2] - kept[0]) * (kept[3] - kept[1]) / ((right - left) * (bottom - top))
    if visible < min_visible:
        return None, visible
    return Place((kept[0] - x1, kept[1] - y1, kept[2] - x1, kept[3] - y1), place.image), visible
