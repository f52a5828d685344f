"""What is in a data set, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetune_core.conversation import prepare
from edgetune_data.check.texts import phrases
from edgetune_data.model_view import ModelView
from edgetune_data.read import Item
from edgetune_runtime.records import record_of

_QUANTILES = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def stats(entries: Sequence[Item], sizes: Mapping[Path, tuple[int, int]], model: ModelView | None) -> dict[str, Any]:
    """Return the numbers as JSON values.

    Args:
        entries: sound records.
        sizes: (width, height) of their upright pictures in pixels.
        model: the model, for what is counted in tokens.
    """
    kinds = Counter(entry.kind if entry.kind != "ground" or entry.places else "absent" for entry in entries)
    placed = [(place.numbers, sizes[entry.images[place.image]]) for entry in entries for place in entry.places]
    boxes = [(np.array(numbers), size) for numbers, size in placed if len(numbers) == 4]
    labels = Counter(label for entry in entries for label in entry.labels)
    return {
        "records": len(entries),
        "images": len(sizes),
        "kinds": dict(kinds),
        "boxes": len(boxes),
        "points": len(placed) - len(boxes),
        "labels": len(labels),
        "most_frequent_labels": dict(labels.most_common(10)),
        "positions": _positions(boxes),
        "distributions": _distributions(entries, sizes, boxes),
        "tokens": _tokens(entries, sizes, boxes, model),
    }


def _distributions(
    entries: Sequence[Item], sizes: Mapping[Path, tuple[int, int]], boxes: Sequence[Any]
) -> dict[str, Any]:
    """Return min, quantiles, max and mean of what every data set has."""
    words = [len(phrase.split()) for entry in entries for phrase in phrases(entry)[:1]]
    per_image = Counter(image for entry in entries for image in entry.images)
    return {
        "image width (px)": spread([width for width, _ in sizes.values()]),
        "image height (px)": spread([height for _, height in sizes.values()]),
        "records an image": spread(list(per_image.values())),
        "boxes a record": spread([len(entry.places) for entry in entries if entry.kind == "ground"]),
        "words a phrase": spread(words),
        "box width (px)": spread([box[2] - box[0] for box, _ in boxes]),
        "box height (px)": spread([box[3] - box[1] for box, _ in boxes]),
        "box area (% of the image)": spread(
            [100 * (box[2] - box[0]) * (box[3] - box[1]) / (width * height) for box, (width, height) in boxes]
        ),
    }


def _tokens(
    entries: Sequence[Item], sizes: Mapping[Path, tuple[int, int]], boxes: Sequence[Any], model: ModelView | None
) -> dict[str, Any]:
    """Return what the model makes of it; empty without one."""
    counted: dict[str, Any] = {}
    if model is None or model.spec is None:
        return counted
    counted["tokens an image"] = spread([model.image_tokens(*size) for size in sizes.values()])
    counted["box area (image tokens)"] = spread([model.tokens_of(box, *size) for box, size in boxes])
    if model.tokenizer is not None:
        records = [record_of(entry.value or {}, Path(), entry.source) for entry in entries]
        samples = prepare(records, model.family, model.spec, model.tokenizer)
        counted["tokens a sample"] = spread([len(sample.ids) for sample in samples])
        counted["learned tokens a sample"] = spread([sum(sample.learned) for sample in samples])
    return counted


def _positions(boxes: Sequence[Any]) -> dict[str, int]:
    """Return how many boxes have their middle in each ninth of the picture."""
    counts: Counter[str] = Counter()
    for box, (width, height) in boxes:
        across = min(int(3 * (box[0] + box[2]) / 2 / width), 2)
        down = min(int(3 * (box[1] + box[3]) / 2 / height), 2)
        counts[f"{_ROWS[down]} {_COLUMNS[across]}"] += 1
    return {f"{row} {column}": counts[f"{row} {column}"] for row in _ROWS for column in _COLUMNS}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return quantiles and the mean of some numbers, or None where there are none."""
    if not values:
        return None
    quantiles = np.percentile(np.asarray(values, dtype=np.float64), list(_QUANTILES.values()))
    named = {name: round(float(value), 4) for name, value in zip(_QUANTILES, quantiles, strict=True)}
    return {**named, "mean": round(float(np.mean(values)), 4)}
