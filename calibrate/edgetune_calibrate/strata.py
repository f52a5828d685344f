"""What a record is like, for choosing samples that cover the data: its kind, label, box and image size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.records import Record

AXES = ("kind", "label", "size", "position", "image tokens", "image")
"""What samples are spread over. "image" counts how often one picture is used."""

# COCO's bounds, here on pixels of the resized picture, where the model has to find the object.
_SIZES = ((32**2, "small"), (96**2, "medium"), (float("inf"), "large"))
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_TOKEN_BINS = 4


def strata(records: Sequence[Record], geometries: Sequence[Geometry], tokens: Sequence[int]) -> dict[str, list[str]]:
    """Return each record's value on each axis.

    Where a record has several boxes, the smallest as the model sees it speaks for it: it is the hardest to keep.

    Args:
        records: the data.
        geometries: of their images.
        tokens: image tokens of each.
    """
    values: dict[str, list[str]] = {axis: [] for axis in AXES}
    for record, geometry in zip(records, geometries, strict=True):
        kind, label, size, position = _answer(record, geometry)
        for axis, value in zip(AXES, (kind, label, size, position), strict=False):
            values[axis].append(value)
        values["image"].append(str(record.image))
    values["image tokens"] = _bins(tokens)
    return values


def _answer(record: Record, geometry: Geometry) -> tuple[str, str, str, str]:
    """Return kind, label, size and position; the label of what has no box is what is asked."""
    if record.boxes is None:
        return "question", record.text, "(question)", "(question)"
    if not len(record.boxes):
        return "absent", record.text, "(absent)", "(absent)"
    scale = np.array([geometry.resized_width / geometry.width, geometry.resized_height / geometry.height] * 2)
    boxes = record.boxes.astype(np.float64) * scale
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smallest = int(areas.argmin())
    size = next(name for bound, name in _SIZES if areas[smallest] < bound)
    return "present", record.labels[smallest], size, _cell(boxes[smallest], geometry)


def _cell(box: npt.NDArray[np.float64], geometry: Geometry) -> str:
    """Return the third of the picture, down and across, where a box has its centre."""
    row = (box[1] + box[3]) / 2 / geometry.resized_height
    column = (box[0] + box[2]) / 2 / geometry.resized_width
    return f"{_ROWS[min(int(row * 3), 2)]} {_COLUMNS[min(int(column * 3), 2)]}"


def _bins(tokens: Sequence[int]) -> list[str]:
    """Return each count's quarter of the distribution, named by its smallest and largest count."""
    counts = np.array(tokens)
    cuts = np.unique(np.quantile(counts, np.arange(1, _TOKEN_BINS) / _TOKEN_BINS, method="inverted_cdf"))
    places = np.searchsorted(cuts, counts, side="left")
    bins = [counts[places == place] for place in range(len(cuts) + 1)]
    names = [f"{each.min()}-{each.max()}" if len(each) else "" for each in bins]
    return [names[place] for place in places]
