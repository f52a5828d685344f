"""Boxes that are carried from frame to frame by optical flow, until a model answers again.

The tracker is Median Flow (Kalal, Mikolajczyk, Matas: Forward-Backward Error, ICPR 2010): points inside a box are
followed forward and back again (Lucas-Kanade with pyramids); those that do not return are dropped, and the box moves
by the median of the others and grows by the median of how their distances grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import MissingDependency, install_command
from edgetune_runtime.live.frames import Gray, Picture

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in float pixels of the upright picture."""

_LONG_SIDE = 320
"""Pixels of the longer side of the picture that points are followed in."""
_GRID = 9
"""Points per side of a box."""
_FEWEST = 8
"""Points that have to return, or the box is lost."""
_RETURN = 1.0
"""Pixels of the small picture that a point may be off when it returns."""
_GROWTH = 0.15
"""How much a box may grow or shrink from one frame to the next."""


def load_opencv() -> Any:
    """OpenCV.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingDependency("OpenCV is not installed", hint=install_command("track", "edgetune-runtime")) from error
    return cv2


def small(picture: Picture) -> Gray:
    """The picture in which points are followed: brightness [H, W], its longer side at most 320 pixels."""
    width, height = picture.size
    scale = min(1.0, _LONG_SIDE / max(width, height))
    return picture.gray((max(1, round(width * scale)), max(1, round(height * scale))))


class Flow:
    """Boxes on their way.

    Examples:
        >>> from PIL import Image
        >>> from edgetune_runtime.live.flow import Flow, small
        >>> from edgetune_runtime.live.frames import StillPicture
        >>> scene = Image.open("photo.png")
        >>> moved = Image.new("RGB", scene.size)
        >>> moved.paste(scene, (3, 2))
        >>> flow = Flow([(10.0, 10.0, 70.0, 50.0)], scene.size, small(StillPicture(scene)))
        >>> flow.step(small(StillPicture(moved)))
        >>> [round(value) for value in flow.boxes[0]]
        [13, 12, 73, 52]

    Args:
        boxes: in pixels of the upright picture.
        size: its width and height.
        gray: its `small` picture.

    Attributes:
        boxes: where they are now; None for one that is lost.
    """

    def __init__(self, boxes: Sequence[Box], size: tuple[int, int], gray: Gray) -> None:
        self._cv2 = load_opencv()
        self.boxes: list[Box | None] = list(boxes)
        self._size, self._gray = size, gray

    def step(self, gray: Gray) -> None:
        """Go on to the next frame, by its `small` picture; all boxes are lost where it has another size."""
        if gray.shape != self._gray.shape:
            self.boxes = [None] * len(self.boxes)
        kept = [index for index, box in enumerate(self.boxes) if box is not None]
        if kept:
            self._move(kept, gray)
        self._gray = gray

    def _move(self, kept: list[int], gray: Gray) -> None:
        scale = np.array([gray.shape[1] / self._size[0], gray.shape[0] / self._size[1]], np.float32)
        before = np.concatenate([_grid(self.boxes[index], scale) for index in kept])
        after, found = self._follow(self._gray, gray, before)
        back, returned = self._follow(gray, self._gray, after)
        off = np.linalg.norm(back - before, axis=1)
        good = found & returned & (off <= _RETURN)
        for place, index in enumerate(kept):
            part = slice(place * _GRID**2, (place + 1) * _GRID**2)
            chosen = good[part] & (off[part] <= max(np.median(off[part]), 0.1))
            box = _moved(self.boxes[index], before[part][chosen] / scale, after[part][chosen] / scale)
            self.boxes[index] = box if box is None or _visible(box, self._size) else None

    def _follow(
        self, start: Gray, end: Gray, points: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Where points [N, 2] of one picture are in another, and which of them were found [N]."""
        moved, status, _ = self._cv2.calcOpticalFlowPyrLK(start, end, points, None, winSize=(15, 15), maxLevel=3)
        return moved, status[:, 0] == 1


def _grid(box: Box | None, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Points [81, 2] inside a box, in pixels of the small picture."""
    assert box is not None
    x1, y1, x2, y2 = box
    # A box's rim is mostly not of the object.
    shares = np.linspace(0.1, 0.9, _GRID)
    xs, ys = np.meshgrid(x1 + shares * (x2 - x1), y1 + shares * (y2 - y1))
    return (np.stack([xs.ravel(), ys.ravel()], axis=1) * scale).astype(np.float32)


def _moved(box: Box | None, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> Box | None:
    """A box moved as its points [N, 2] did; None where too few are left."""
    if box is None or len(before) < _FEWEST:
        return None
    shift = np.median(after - before, axis=0)
    first, second = np.triu_indices(len(before), 1)
    distance = np.linalg.norm(before[first] - before[second], axis=1)
    apart = distance > 0
    growth = np.median(np.linalg.norm(after[first] - after[second], axis=1)[apart] / distance[apart])
    growth = float(np.clip(growth, 1 - _GROWTH, 1 + _GROWTH))
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2 + shift[0], (y1 + y2) / 2 + shift[1]
    width, height = (x2 - x1) * growth / 2, (y2 - y1) * growth / 2
    return (float(x - width), float(y - height), float(x + width), float(y + height))


def _visible(box: Box, size: tuple[int, int]) -> bool:
    """Whether the middle of a box is inside the picture."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return 0 <= x <= size[0] and 0 <= y <= size[1]
