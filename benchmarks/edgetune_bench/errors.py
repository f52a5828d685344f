"""The worst answers of an evaluation, each drawn with its target, as one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from edgetune_bench.gallery import ANSWER, TRUTH, reduce
from edgetune_bench.page import Cell, Sample, html_page
from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.draw import draw_detections
from edgetune_runtime.images.load import load_image

Row = Mapping[str, Any]
_LONGEST_SIDE = 300
_HIT, _NEAR = 0.5, 0.1  # IoU from which a box is right, and from which it is at least about the right thing
_LONGEST_ANSWER = 80  # characters

KINDS: Mapping[str, Callable[[Row], bool]] = {
    "Another place": lambda row: row["status"] == "found" and bool(row["truth"]) and row["iou"] < _NEAR,
    "The place, but not the extent": lambda row: row["status"] == "found" and _NEAR <= (row["iou"] or 0) < _HIT,
    "A box where nothing is": lambda row: row["status"] == "found" and not row["truth"],
    "There, but refused": lambda row: row["status"] == "refused" and bool(row["truth"]),
    "Neither a box nor a refusal": lambda row: row["status"] == "unparsed",
    "Wrong words": lambda row: False,
}
"""Kinds of errors, in the order of the page, and which grounding answers are of each; words are of the last."""


def sort(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The wrong answers of each kind that has any, worst first.

    Boxes are in the order of IoU and, where that is equal, of falling confidence; words in the order of their accuracy.
    Right are boxes with an IoU from 0.5, refusals of what is absent, and words with an accuracy from 0.5.
    """
    found: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for row in rows:
        if row["kind"] == "ground":
            for kind, holds in KINDS.items():
                if holds(row):
                    found[kind].append(row)
        elif row["accuracy"] < _HIT:
            found["Wrong words"].append(row)
    return {kind: sorted(wrong, key=_badness) for kind, wrong in found.items() if wrong}


def choose(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
    """The worst `count` answers: each kind in turn gives its next, until there are enough."""
    wrong = sort(rows)
    chosen: dict[str, list[Row]] = {kind: [] for kind in wrong}
    for place in range(max(map(len, wrong.values()), default=0)):
        for kind, ordered in wrong.items():
            if place < len(ordered) and sum(map(len, chosen.values())) < count:
                chosen[kind].append(ordered[place])
    return {kind: some for kind, some in chosen.items() if some}


def error_page(name: str, rows: Sequence[Row], count: int) -> str:
    """The page of the worst `count` answers in scored rows, as HTML that fetches nothing."""
    wrong = sort(rows)
    total = sum(map(len, wrong.values()))
    intro = [f"{total} of {len(rows)} answers are wrong; the worst {min(count, total)} are drawn."]
    if any(row["kind"] == "ground" for row in rows):
        intro.append("Green is the target, orange the answer. A box is right from an IoU of 0.5 with its target.")
    table = [{"kind of error": kind, "answers": str(len(some))} for kind, some in wrong.items()]
    samples = [Sample(kind, [_cell(row) for row in some]) for kind, some in choose(rows, count).items()]
    return html_page(f"The worst answers of {name}", intro=intro, tables=[table], samples=samples)


def _badness(row: Row) -> tuple[float, float]:
    if row["kind"] == "vqa":
        return (row["accuracy"], row["anls"])
    return (row["iou"] or 0.0, -(_confidence(row) or 0.0))


def _confidence(row: Row) -> float | None:
    return next(iter(row.get("scores") or []), None)


def _cell(row: Row) -> Cell:
    title = f"{row['text']} ({row['source']})"
    image, scale = reduce(load_image(row["image"]), _LONGEST_SIDE)
    if row["kind"] == "vqa":
        accepted = " or ".join(dict.fromkeys(row["expected"]))
        return Cell(title, f"{_short(row['raw']) or 'nothing'}, not {_short(accepted)}", image, False)
    drawn = _outline(_outline(image, row["truth"], scale, TRUTH), row["boxes"], scale, ANSWER)
    parts = [f"IoU {row['iou']:.2f}"] if row["truth"] and row["boxes"] else []
    parts += [f"confidence {_confidence(row):.2f}"] if _confidence(row) is not None else []
    if row["status"] != "found":
        parts = ["says it is not there" if row["status"] == "refused" else _short(row["raw"]) or "says nothing"]
    return Cell(title, ", ".join(parts) or "a box", drawn, False)


def _outline(image: Image.Image, boxes: Sequence[Sequence[float]], scale: float, colour: str) -> Image.Image:
    found = [Detection((x1 * scale, y1 * scale, x2 * scale, y2 * scale), "") for x1, y1, x2, y2 in boxes]
    return draw_detections(image, found, color=colour)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_ANSWER else text[: _LONGEST_ANSWER - 1] + "…"
