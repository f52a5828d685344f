"""Choose samples of an evaluation and draw what each model answered beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from edgetune_bench.page import Cell, Sample
from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.draw import draw_detections
from edgetune_runtime.images.load import load_image

Row = Mapping[str, Any]
_LONGEST_SIDE = 256
TRUTH, ANSWER = "#00e676", "#ffab00"
"""Colours of boxes, readable on dark and on bright pictures."""
_FULL, _MAX_GAIN = 160.0, 4.0  # the 99th percentile that dark pictures are lifted to, and by how much at most
_HIT = 0.5  # the IoU from which a box counts as right, as in Acc@0.5


def choose(rows: Sequence[Row], count: int) -> list[str]:
    """Sources of up to `count` grounding rows, evenly spaced over the set: a choice that no result can influence."""
    sources = [row["source"] for row in rows if row["kind"] == "ground"]
    if not sources:
        return []
    places = np.linspace(0, len(sources) - 1, min(count, len(sources))).round().astype(int)
    return [sources[place] for place in places]


def samples(answers: Mapping[str, Sequence[Row]], sources: Sequence[str]) -> list[Sample]:
    """One sample for each source: its truth, then each model's answer; `answers` is name -> rows, in column order."""
    indexed = {name: {row["source"]: row for row in rows} for name, rows in answers.items()}
    return [_sample({name: rows[source] for name, rows in indexed.items()}) for source in sources]


def _sample(answers: Mapping[str, Row]) -> Sample:
    first = next(iter(answers.values()))
    image = load_image(first["image"])
    truth = Cell("truth", _count(first["truth"]), _draw(image, first["truth"], TRUTH))
    cells = [Cell(name, _score(row), _draw(image, row["boxes"], ANSWER), _right(row)) for name, row in answers.items()]
    return Sample(first["text"], [truth, *cells])


def _draw(image: Image.Image, boxes: Sequence[Sequence[float]], color: str) -> Image.Image:
    """The picture with its boxes, reduced to the size of a cell; drawn after reducing, so that lines stay readable."""
    small, scale = reduce(image, _LONGEST_SIDE)
    # The phrase stands above the row, so the boxes need no labels.
    found = [Detection((x1 * scale, y1 * scale, x2 * scale, y2 * scale), "") for x1, y1, x2, y2 in boxes]
    return draw_detections(small, found, color=color)


def reduce(image: Image.Image, longest: int) -> tuple[Image.Image, float]:
    """The picture with sides of at most `longest` pixels, bright enough to be looked at, and what it was scaled by."""
    scale = min(1.0, longest / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return _lighten(image.resize(size, Image.Resampling.LANCZOS)), scale


def _lighten(image: Image.Image) -> Image.Image:
    """A dark picture made bright enough to be looked at; others stay as they are. Models never see this."""
    brightest = float(np.percentile(np.asarray(image), 99))
    gain = min(_FULL / max(brightest, 1.0), _MAX_GAIN)
    return image.point(lambda level: round(level * gain)) if gain > 1 else image


def _right(row: Row) -> bool:
    return bool(row["status"] == "refused" if not row["truth"] else row["iou"] >= _HIT)


def _score(row: Row) -> str:
    if row["status"] == "refused":
        return "says it is not there"
    if row["status"] == "unparsed":
        return "no box in the answer"
    return f"IoU {row['iou']:.2f}" if row["truth"] else "a box where nothing is"


def _count(truth: Sequence[object]) -> str:
    return "not in the picture" if not truth else "1 box" if len(truth) == 1 else f"{len(truth)} boxes"
