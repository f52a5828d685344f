"""VLM-R1's records: image, problem, and as solution a box, boxes with labels, or a text (often in <answer> tags).

Format: github.com/om-ai-lab/VLM-R1 (rec_jsons_processed and the records of its GRPO training). Its records with
conversations are LLaVA's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, carried, number_in, object_rows
from edgetune_data.frames import corners, frame_of
from edgetune_runtime.errors import excerpt
from edgetune_runtime.records.checks import box_of
from edgetune_runtime.records.forms import FormError

_ANSWER = re.compile(r"\s*(?:<think>.*?</think>\s*)?<answer>(.*?)</answer>\s*", re.DOTALL)
_OURS = ("image", "problem", "normal_caption", "solution", "id")
_HINT = "a solution is a text, [x1, y1, x2, y2], or a list of bbox_2d and label"


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each object of the file."""
    return object_rows(source.path, partial(_convert, source))


def _convert(source: Source, record: Mapping[str, Any]) -> Value:
    for key in ("image", "problem", "solution"):
        if record.get(key) is None:
            raise FormError(f"missing key {key!r}", hint="a VLM-R1 record has image, problem and solution")
    images = record["image"] if isinstance(record["image"], list) else [record["image"]]
    if len(images) != 1:
        raise FormError(f"{len(images)} pictures", hint="a record is about one picture")
    image, solution = source.pictures.path(images[0]), record["solution"]
    value: Value
    if isinstance(solution, str):
        inside = _ANSWER.fullmatch(solution)
        source.notes["solutions in <answer> tags, which are left out"] += inside is not None
        answer = inside[1].strip() if inside else solution
        value = {"image": image, "question": _question(record), "answer": answer}
    else:
        boxes, labels = _boxes(solution)
        phrase = record.get("normal_caption") or record["problem"]
        value = {"image": image, "text": phrase, "bbox": _placed(source, image, boxes)}
        value |= {"label": labels} if labels else {}
    if "id" in record:
        value["id"] = record["id"]
    meta = carried(record, _OURS)
    return value | ({"meta": meta} if meta else {})


def _question(record: Mapping[str, Any]) -> Any:
    problem = record["problem"]
    return problem.replace("<image>", "", 1).strip() if isinstance(problem, str) else problem


def _boxes(solution: Any) -> tuple[list[list[float]], list[str]]:
    """Return boxes as they are written, and their labels where they have some."""
    if not isinstance(solution, list):
        raise FormError(f"'solution' {excerpt(solution, 60)} is not read", hint=_HINT)
    if solution and all(isinstance(item, dict) and "bbox_2d" in item for item in solution):
        labels = [item["label"] for item in solution if item.get("label") is not None]
        for label in labels:
            if not isinstance(label, str):
                raise FormError(f"the label of a box is a text, got {excerpt(label, 60)}", hint="write one name a box")
        if labels and len(labels) != len(solution):
            raise FormError(f"{len(solution)} boxes but {len(labels)} labels")
        return [_numbers(item["bbox_2d"]) for item in solution], labels
    several = all(isinstance(item, list) for item in solution)  # of [] too: the object is absent
    return [_numbers(item) for item in (solution if several else [solution])], []


def _numbers(box: Any) -> list[float]:
    """Return four numbers, which some files have as texts."""
    if isinstance(box, list) and all(isinstance(number, str) for number in box):
        try:
            box = [number_in(number) for number in box]
        except ValueError as error:
            raise FormError(f"'solution' {box!r} is not read", hint=_HINT) from error
    return box_of(box)


def _placed(source: Source, image: str, boxes: list[list[float]]) -> list[list[float]]:
    """Return boxes as xyxy in pixels of the upright picture."""
    placed = []
    for box in boxes:
        if source.options.box_format is None and all(0 <= number <= 1 for number in box):
            raise FormError(
                f"bbox {box} lies within one pixel", hint="--box-format xyxy-norm1 if it is in shares of the picture"
            )
        numbers, unit = corners(box, source.options.box_format or "xyxy")
        placed.append(frame_of(image, orientation=source.options.orientation).upright(numbers, unit=unit))
    return placed


FORMAT = Format(
    name="vlm-r1",
    title="VLM-R1: image, problem and solution (JSON, JSONL)",
    sniff=lambda found: {"image", "problem", "solution"} <= set(found.telling),
    rows=rows,
    options=TURNS_OPTIONS | {"box_format": "what the numbers of a box mean; xyxy in pixels by default"},
)
