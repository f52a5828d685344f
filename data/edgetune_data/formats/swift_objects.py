"""The objects of an ms-swift record: two streams of placeholders, and boxes brought to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from edgetune_data.frames import frame_of
from edgetune_runtime.records.forms import FormError

_KEYS = ("ref", "bbox", "bbox_type", "image_id")


def boxes_in_pixels(
    objects: Any, texts: Sequence[str], images: Sequence[str], orientation: Literal["upright", "stored"] | None
) -> dict[str, Any]:
    """Return canonical objects: boxes and points in pixels of the upright pictures.

    Args:
        objects: ref, bbox, bbox_type ("real", pixels, or "norm1", shares of width and height) and image_id.
        texts: of all messages, whose placeholders must be as many as there are names and boxes.
        images: paths of the record's pictures.
        orientation: of boxes on pictures with an EXIF tag.

    Raises:
        FormError: a count, a type or a number is wrong. ImageError: a picture that a box needs cannot be read.
    """
    if not isinstance(objects, dict):
        raise FormError(f"'objects' must be an object, got {objects!r}")
    unknown = [key for key in objects if key not in _KEYS]
    if unknown:
        raise FormError(f"unknown key {unknown[0]!r} in 'objects'", hint=f"it has {', '.join(_KEYS)}")
    names = _list(objects, "ref")
    if "bbox" not in objects:
        raise FormError("'objects' has no 'bbox'", hint="write [] where there are only names")
    boxes = _list(objects, "bbox")
    whole = "".join(texts)
    for mark, values, key in (("<ref-object>", names, "ref"), ("<bbox>", boxes, "bbox")):
        if whole.count(mark) != len(values):
            raise FormError(f"{whole.count(mark)} {mark} in the messages but {len(values)} in 'objects.{key}'")
    unit = objects.get("bbox_type") or "real"
    if unit not in ("real", "norm1"):
        raise FormError(f"bbox_type {unit!r} is not supported", hint="real (pixels) or norm1 (0 to 1)")
    owners = _owners(objects, len(boxes), len(images))
    placed = []
    for box, owner in zip(boxes, owners, strict=True):
        _check_numbers(box, unit)
        frame = frame_of(images[owner], orientation=orientation)
        placed.append(frame.upright(box, unit="norm1" if unit == "norm1" else "pixel"))
    return {"ref": names, "bbox": placed} | ({"image_id": owners} if any(owners) else {})


def _list(objects: dict[str, Any], key: str) -> list[Any]:
    value = objects.get(key)
    value = [] if value is None else value
    if not isinstance(value, list):
        raise FormError(f"'objects.{key}' must be a list, got {value!r}")
    return value


def _owners(objects: dict[str, Any], boxes: int, images: int) -> list[int]:
    """Return the picture of each box, from 0."""
    owners = _list(objects, "image_id") or [0] * boxes
    if boxes and not images:
        raise FormError(f"{boxes} in 'objects.bbox' but no image")
    if len(owners) != boxes:
        raise FormError(f"{len(owners)} in 'objects.image_id' but {boxes} in 'objects.bbox'")
    for owner in owners:
        if type(owner) is not int or not 0 <= owner < images:
            raise FormError(f"'objects.image_id' says {owner!r} but there are {images} images, counted from 0")
    return owners


def _check_numbers(box: Any, unit: str) -> None:
    plain = isinstance(box, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
    if not plain or len(box) not in (2, 4) or not all(map(math.isfinite, box)):
        raise FormError(f"a bbox is [x1, y1, x2, y2] or a point [x, y], got {box!r}")
    if unit == "norm1" and not all(0 <= number <= 1 for number in box):
        raise FormError(f"bbox {box} is not between 0 and 1, as bbox_type norm1 says")
