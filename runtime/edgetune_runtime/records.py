"""Data files: one JSON object a line, each about one image.

Four forms are read, told apart by their keys:

- `{"image", "text", "bbox"}`: find `text`; `bbox` is one box, several, or `[]` for an absent object
- `{"image", "question", "answer"}`: a question; `answer` is a text or a list of accepted ones
- `{"image", "conversations"}`: one human and one gpt turn, as LLaVA's data
- `{"messages", "images"[, "objects"]}`: one user and one assistant message; with `objects`, the
  placeholders `<ref-object>` and `<bbox>` stand for names and boxes

Boxes are xyxy in pixels of the original image, upright. Everything is checked when the file is read
(images by their header), so bad data fails before a long run starts and not in the middle of it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import ImageError, InputError, RecordError
from edgetune_runtime.families.base import Family
from edgetune_runtime.image import check_aspect, upright_size
from edgetune_runtime.record_forms import FormError, Parts, read_form


@dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        image: path of the picture.
        text: the phrase to find ("ground"), or the whole question ("vqa").
        boxes: float32 [N, 4] xyxy in pixels of the original image, N = 0 if the object is absent; None for "vqa".
        labels: N names.
        answers: accepted answers of a "vqa" record, best first.
        request: the user's whole words where the record spells them out, else None.
        source: where the record comes from, e.g. "data.jsonl:17".
    """

    image: Path
    text: str
    boxes: npt.NDArray[np.float32] | None
    labels: list[str]
    answers: list[str]
    request: str | None
    source: str

    @property
    def kind(self) -> Literal["ground", "vqa"]:
        """Either "ground", answered with boxes, or "vqa", answered with text."""
        return "vqa" if self.boxes is None else "ground"

    @property
    def answer(self) -> str | None:
        """The most frequent accepted answer of a "vqa" record (the first of equals), else None."""
        return Counter(self.answers).most_common(1)[0][0] if self.answers else None

    def prompt(self, family: Family) -> str:
        """Return the user's words for a model: phrases go into the family's request for a box."""
        if self.request is not None:
            return self.request
        return family.ground_prompt.replace("{phrase}", self.text) if self.kind == "ground" else self.text


def read_records(path: Path) -> list[Record]:
    """Read and check a JSONL file. Image paths are relative to its folder; blank lines are ignored.

    Raises:
        InputError: the file is missing or has no records.
        RecordError: the first bad line, as "data.jsonl:17: ...": broken JSON, unknown or missing keys, a
            missing or unreadable image, a box that is empty, inverted or leaves its image.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such data file")
    records = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                records.append(_record(line, path, number))
            except (FormError, ImageError) as error:
                raise RecordError(str(error), path=path, line=number, hint=error.hint) from error
    if not records:
        raise InputError(f"{path}: no records in this file")
    return records


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise FormError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise FormError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise FormError("not valid JSON: nested too deeply") from error
    if not isinstance(value, dict):
        raise FormError(f"a record is a JSON object, got {type(value).__name__}")
    parts = read_form(value)
    image = path.parent / parts.image
    width, height = _size(image)
    boxes = None if parts.boxes is None else _boxes(parts, width, height)
    return Record(image, parts.text, boxes, parts.labels, parts.answers, parts.request, f"{path.name}:{number}")


# Data sets ask about the same picture many times; its header is read once.
@lru_cache(maxsize=4096)
def _checked_size(image: Path, _changed: int) -> tuple[int, int]:
    size = upright_size(image)
    check_aspect(*size)
    return size


def _size(image: Path) -> tuple[int, int]:
    return _checked_size(image, image.stat().st_mtime_ns if image.exists() else 0)


def _boxes(parts: Parts, width: int, height: int) -> npt.NDArray[np.float32]:
    """Return checked boxes, float32 [N, 4], for an image of this size in pixels."""
    assert parts.boxes is not None
    for box in parts.boxes:
        x1, y1, x2, y2 = box
        if x1 >= x2 or y1 >= y2:
            raise FormError(
                f"bbox {box} is empty or inverted: {'x1 >= x2' if x1 >= x2 else 'y1 >= y2'}",
                hint="boxes are [x1, y1, x2, y2] with x1 < x2 and y1 < y2, not [x, y, width, height]",
            )
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            raise FormError(
                f"bbox {box} leaves the {width}x{height} image {parts.image}",
                hint="boxes are in pixels of the original upright image (after EXIF orientation), not 0-1 or 0-1000",
            )
    return np.array(parts.boxes, dtype=np.float32).reshape(-1, 4)
