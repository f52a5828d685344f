"""The two frames of a box, and the way between them.

The image frame is xyxy in float pixels of the ORIGINAL image, upright (EXIF orientation applied): (0, 0) is
the outer corner of the first pixel and (width, height) that of the last.

The model frame is what the model reads and writes, as `BoxFormat.frame` says:

- "norm1000": 0-1000 of width and of height
- "resized": pixels of the resized image that the model sees
- "norm01": 0-1 of width and of height
- "padded01": 0-1 of the image padded to a centred square
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.errors import InputError

Boxes = npt.NDArray[np.float64]
"""Boxes [N, 4], xyxy, float64."""


@dataclass(frozen=True)
class Geometry:
    """Sizes, in pixels, of one image: as it is (upright) and as the model sees it.

    Raises:
        InputError: a side is not positive.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.resized_width, self.resized_height) < 1:
            raise InputError(f"image geometry must be positive: {self}")


def as_boxes(boxes: npt.ArrayLike) -> Boxes:
    """Return boxes as float64 [N, 4]; an empty list becomes [0, 4].

    Raises:
        InputError: the shape is not [N, 4] or a coordinate is not finite.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"boxes must have shape [N, 4] (x1, y1, x2, y2), got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise InputError("boxes must be finite numbers")
    return array


def _ratio(geometry: Geometry, box_format: BoxFormat) -> tuple[Boxes, Boxes, Boxes]:
    """Return (units [4], pixels [4], padding [4]) with `model = (image + padding) * units / pixels`.

    Units over pixels, and not a factor, so that the edges of one frame are exactly those of the other.
    """
    size = np.array([geometry.width, geometry.height] * 2, dtype=np.float64)
    if box_format.frame == "norm1000":
        return np.full(4, 1000.0), size, np.zeros(4)
    if box_format.frame == "norm01":
        return np.ones(4), size, np.zeros(4)
    if box_format.frame == "resized":
        return np.array([geometry.resized_width, geometry.resized_height] * 2, dtype=np.float64), size, np.zeros(4)
    # The original LLaVA code pads with whole pixels, the smaller half first.
    side = size.max()
    return np.ones(4), np.full(4, side), (side - size) // 2


def to_model(boxes: npt.ArrayLike, geometry: Geometry, box_format: BoxFormat) -> Boxes:
    """Return boxes [N, 4] of the image frame in the model frame, float64, unrounded.

    Raises:
        InputError: see `as_boxes`.
    """
    units, pixels, padding = _ratio(geometry, box_format)
    return (as_boxes(boxes) + padding) * units / pixels


def to_image(boxes: npt.ArrayLike, geometry: Geometry, box_format: BoxFormat) -> Boxes:
    """Return boxes [N, 4] of the model frame in the image frame, float64, unclipped.

    Raises:
        InputError: see `as_boxes`.
    """
    units, pixels, padding = _ratio(geometry, box_format)
    return as_boxes(boxes) * pixels / units - padding


def frame_size(geometry: Geometry, box_format: BoxFormat) -> Boxes:
    """Return the largest coordinates of the model frame, as [4] (x, y, x, y); the smallest are 0."""
    return _ratio(geometry, box_format)[0]


def step_in_pixels(geometry: Geometry, box_format: BoxFormat) -> Boxes:
    """Return one quantization step of the model frame in original pixels, as [4] (x, y, x, y).

    A box that is written and read back is off by at most half of it.
    """
    units, pixels, _ = _ratio(geometry, box_format)
    return pixels / units / 10.0**box_format.decimals
