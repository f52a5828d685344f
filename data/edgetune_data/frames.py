"""From the frames that data sets use for boxes to ours: xyxy in pixels of the upright picture.

EXIF orientation: a camera may store a picture turned and say so in a tag. Some tools draw boxes on the picture as it
is stored, others on the upright one; pixels of the two differ. The eight cases are those of the EXIF standard (CIPA
DC-008, tag 0x0112), in the meaning that Pillow's `ImageOps.exif_transpose` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from edgetune_runtime.images.load import changed_at, read_header
from edgetune_runtime.records.forms import FormError

Unit = Literal["pixel", "norm1", "norm1000"]
"""What coordinates count: pixels, or 1 or 1000 for the whole width or height."""


@dataclass(frozen=True)
class Frame:
    """Where the numbers of a picture's boxes live.

    Attributes:
        width: in pixels, of the picture as the boxes see it.
        height: likewise.
        turn: EXIF orientation (1-8) still to be applied to get upright boxes; 1 leaves them.
    """

    width: int
    height: int
    turn: int = 1

    def upright(self, numbers: Sequence[float], *, unit: Unit = "pixel") -> list[float]:
        """Return a box (4 numbers, xyxy) or point (2) in pixels of the upright picture, to a thousandth of a pixel."""
        whole = {"pixel": None, "norm1": 1, "norm1000": 1000}[unit]
        across, down = (self.width / whole, self.height / whole) if whole else (1.0, 1.0)
        points = [(x * across, y * down) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        turned = [self._turned(x, y) for x, y in points]
        if len(turned) == 2 and self.turn != 1:
            (x1, y1), (x2, y2) = turned
            # A mirrored box keeps its order, so that an inverted one is still seen to be inverted.
            flip_x, flip_y = self._flips()
            turned = [(x2 if flip_x else x1, y2 if flip_y else y1), (x1 if flip_x else x2, y1 if flip_y else y2)]
        return [tidy(number) for point in turned for number in point]

    def _turned(self, x: float, y: float) -> tuple[float, float]:
        across, down = self.width - x, self.height - y
        return {
            1: (x, y),
            2: (across, y),
            3: (across, down),
            4: (x, down),
            5: (y, x),
            6: (down, x),
            7: (down, across),
            8: (y, across),
        }[self.turn]

    def _flips(self) -> tuple[bool, bool]:
        return self.turn in (2, 3, 6, 7), self.turn in (3, 4, 7, 8)


_UPRIGHT = 1e-3
"""Degrees that are no rotation: less than a tenth of a pixel of a 4K picture."""


def is_turned(degrees: float) -> bool:
    """Whether a rotation in degrees is one: 360 and the rounding of a mouse's turn back are not."""
    return abs(math.remainder(degrees, 360)) > _UPRIGHT


def tidy(number: float) -> float:
    """Return a coordinate to a thousandth of a pixel, whole ones as int: sums of decimals are not exact in binary."""
    rounded = round(float(number), 3)
    return int(rounded) if rounded.is_integer() else rounded


def xywh_to_xyxy(box: Sequence[float]) -> list[float]:
    """Return corners from left, top, width and height."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def corners(box: Sequence[float], box_format: str) -> tuple[list[float], Unit]:
    """Return a box's corners (xyxy) and their unit, from one of `edgetune_data.formats.base.BOX_FORMATS`.

    Raises:
        FormError: a number that should be a share of the picture is not between 0 and 1 (or 1000).
    """
    order, _, unit = box_format.partition("-")
    if unit and not all(0 <= number <= (1 if unit == "norm1" else 1000) for number in box):
        raise FormError(f"bbox {list(box)} is not between 0 and {1 if unit == 'norm1' else 1000}, as {box_format} says")
    if order == "cxcywh":
        x, y, width, height = box
        box = [x - width / 2, y - height / 2, width, height]
    found = list(box) if order == "xyxy" else xywh_to_xyxy(box)
    return found, "norm1" if unit == "norm1" else "norm1000" if unit == "norm1000" else "pixel"


@lru_cache(maxsize=4096)
def _facts(path: str, _changed: int) -> tuple[int, int, int]:
    width, height, turn = read_header(Path(path))
    return (height, width, turn) if turn >= 5 else (width, height, turn)


def frame_of(
    path: str, *, orientation: Literal["upright", "stored"] | None = None, declared: tuple[Any, Any] | None = None
) -> Frame:
    """Return the frame that the boxes of a picture are written in.

    Args:
        path: the picture's file.
        orientation: whether boxes were drawn on the upright picture or on the stored one; None tells it from `declared`
            where that is possible.
        declared: the picture's (width, height) as the data set says, to be compared with the file's.

    Raises:
        ImageError: there is no readable picture at `path`.
        FormError: the file has another size than declared, what is declared is no size, or a turned picture's boxes
            could mean either frame.
    """
    width, height, turn = _facts(path, changed_at(Path(path)))
    upright = (width, height)
    stored = (height, width) if turn >= 5 else upright
    if declared is not None and any(isinstance(side, bool) or not isinstance(side, int | float) for side in declared):
        raise FormError(f"width and height of the picture must be numbers, got {declared[0]!r} and {declared[1]!r}")
    if declared is not None and declared not in (upright, stored):
        raise FormError(
            f"the data is for a {declared[0]}x{declared[1]} picture, but {path} has {width}x{height} pixels",
            hint="exchange width and height in the data"
            if declared[::-1] == upright
            else "use the pictures that were annotated, or scale the boxes",
        )
    if turn == 1:
        return Frame(*upright)
    if orientation is None and declared is not None and upright != stored:
        orientation = "upright" if declared == upright else "stored"
    if orientation is None:
        raise FormError(
            f"{path} is stored turned (EXIF orientation {turn}): its boxes may be of the stored or the upright one",
            hint="--orientation upright if the tool showed it upright, as browsers do; stored if it ignored the tag",
        )
    return Frame(*upright) if orientation == "upright" else Frame(*stored, turn)
