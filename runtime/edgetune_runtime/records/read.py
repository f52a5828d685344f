"""Data files: one JSON object a line, each about one image.

Five forms are read, told apart by their keys:

- `{"image", "text", "bbox"}`: find `text`; `bbox` is one box, several, or `[]` for an absent object
- `{"image", "text"}`: a caption, the answer to "Describe this image."
- `{"image", "question", "answer"}`: a question; `answer` is a text or a list of accepted ones
- `{"messages", "images"[, "objects"]}`: a conversation; the placeholders `<image>`, `<ref-object>` and
  `<bbox>` stand for pictures, names and boxes or points
- `{"image", "conversations"}`: the same in the words of LLaVA's data

A conversation of one question about one picture, answered with boxes alone or with text, is a record like the
first two; any other is a `Dialogue`, which is trained or calibrated on and not scored.

Boxes are xyxy in pixels of the original image, upright. Everything is checked when the file is read
(images by their header), so bad data fails before a long run starts and not in the middle of it.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import ImageError, InputError, RecordError
from edgetune_runtime.images.load import changed_at, upright_size
from edgetune_runtime.images.smart import check_aspect
from edgetune_runtime.json_file import decode_json
from edgetune_runtime.manifest import verify_listed
from edgetune_runtime.records.dialogue import Dialogue
from edgetune_runtime.records.forms import FormError, Parts, read_form


class Asked(Protocol):
    """Who is asked for boxes: a family, or a bundle of one that this version need not know."""

    @property
    def ground_prompt(self) -> str:
        """The request for a box, with `{phrase}`."""


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
        id: the record's own name, or None.
        meta: whatever else the file says of it.
    """

    image: Path
    text: str
    boxes: npt.NDArray[np.float32] | None
    labels: list[str]
    answers: list[str]
    request: str | None
    source: str
    id: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def images(self) -> tuple[Path, ...]:
        """The picture, as a dialogue would name it."""
        return (self.image,)

    @property
    def kind(self) -> Literal["ground", "vqa"]:
        """Either "ground", answered with boxes, or "vqa", answered with text."""
        return "vqa" if self.boxes is None else "ground"

    @property
    def answer(self) -> str | None:
        """The most frequent accepted answer of a "vqa" record (the first of equals), else None."""
        return Counter(self.answers).most_common(1)[0][0] if self.answers else None

    def prompt(self, model: Asked) -> str:
        """Return the user's words for a model, which is a family or a bundle: phrases go into its request for a box."""
        if self.request is not None:
            return self.request
        return model.ground_prompt.replace("{phrase}", self.text) if self.kind == "ground" else self.text


AnyRecord = Record | Dialogue
"""What a line of a data file may hold."""


def read_records(path: Path) -> list[Record]:
    """Read and check a JSONL file whose records can be scored: one question about one picture each.

    Raises:
        InputError, RecordError: as `read_entries`; a dialogue is an error too.
    """
    return scored(read_entries(path), path)


def scored(entries: Sequence[AnyRecord], path: Path) -> list[Record]:
    """Return entries as records.

    Raises:
        InputError: one is a dialogue, for which there is no score.
    """
    for entry in entries:
        if isinstance(entry, Dialogue):
            raise InputError(
                f"{place_of(path, entry)}: a conversation of {len(entry.turns)} turns about {len(entry.images)} "
                "pictures has no score",
                hint="train or calibrate on it; to score, write one record a question",
            )
    return [entry for entry in entries if isinstance(entry, Record)]


def place_of(path: Path, entry: AnyRecord) -> str:
    """Return where a record of a data file or folder stands, with its folder where the record is from that file."""
    if path.is_dir():
        return str(path / entry.source)
    return str(path.parent / entry.source) if entry.source.startswith(path.name) else entry.source


def read_entries(path: Path) -> list[AnyRecord]:
    """Read and check a JSONL file. Image paths are relative to its folder; blank lines are ignored.

    Raises:
        InputError: the file is missing or has no records.
        RecordError: the first bad line, as "data.jsonl:17: ...": broken JSON, unknown or missing keys, a
            missing or unreadable image, a box that is empty, inverted or leaves its image.
        BundleError: the file differs from what the manifest.json or dataset.json beside it says.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such data file")
    verify_listed([path])
    entries: list[AnyRecord] = []
    sources: dict[str, int] = {}
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                entry = record_of(decode_line(line, number), path.parent, f"{path.name}:{number}")
                if sources.setdefault(entry.source, number) != number:
                    raise FormError(f"'source' {entry.source!r} is also that of line {sources[entry.source]}")
                entries.append(entry)
            except (FormError, ImageError) as error:
                raise RecordError(str(error), path=path, line=number, hint=error.hint) from error
    if not entries:
        raise InputError(f"{path}: no records in this file")
    return entries


def record_of(value: Mapping[str, Any], folder: Path, source: str) -> AnyRecord:
    """Return one decoded JSON object as a record or a dialogue.

    Args:
        value: the object, in one of the forms above.
        folder: what its image paths are relative to.
        source: where it comes from, e.g. "data.jsonl:17"; the object's own "source" goes before it.

    Raises:
        FormError: no known form, or a bad value.
        ImageError: an image is missing or unreadable.
    """
    parts = read_form(value)
    name = None if value.get("id") is None else str(value["id"])
    meta, source = value.get("meta", {}), value.get("source", source)
    if isinstance(parts, Parts):
        width, height = _size(folder / parts.image)
        boxes = None
        if parts.boxes is not None:
            for box in parts.boxes:
                _check_place(box, width, height, parts.image)
            boxes = np.array(parts.boxes, dtype=np.float32).reshape(-1, 4)
        image = folder / parts.image
        return Record(image, parts.text, boxes, parts.labels, parts.answers, parts.request, source, name, meta)
    images = tuple(folder / image for image in parts.images)
    dialogue = Dialogue(images, parts.turns, source, name, meta)
    sizes = [_size(image) for image in images]
    for place in dialogue.places:
        _check_place(place.numbers, *sizes[place.image], parts.images[place.image])
    return dialogue


def decode_line(line: bytes, number: int) -> Mapping[str, Any]:
    """Return the JSON object on a line of a data file; `number`, from 1, tells whether it may have a byte order mark.

    Raises:
        FormError: it is no object of JSON, or as `decode_json`.
    """
    try:
        value = decode_json(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
    except InputError as error:
        raise FormError(str(error), hint=error.hint) from error
    if not isinstance(value, dict):
        hint = "name a file that holds an array .json" if isinstance(value, list) else None
        raise FormError(f"a record is a JSON object, got {type(value).__name__}", hint=hint)
    return value


# Data sets ask about the same picture many times; its header is read once.
@lru_cache(maxsize=4096)
def _checked_size(image: Path, _changed: int) -> tuple[int, int]:
    size = upright_size(image)
    check_aspect(*size)
    return size


def _size(image: Path) -> tuple[int, int]:
    return _checked_size(image, changed_at(image))


def _check_place(numbers: Sequence[float], width: int, height: int, image: str) -> None:
    """Refuse a box (x1, y1, x2, y2) or a point (x, y) that is not one or leaves its image (pixels)."""
    where = "boxes are in pixels of the original upright image (after EXIF orientation), not 0-1 or 0-1000"
    if len(numbers) == 2:
        if not (0 <= numbers[0] <= width and 0 <= numbers[1] <= height):
            raise FormError(f"point {list(numbers)} leaves the {width}x{height} image {image}", hint=where)
        return
    x1, y1, x2, y2 = numbers
    if x1 >= x2 or y1 >= y2:
        raise FormError(
            f"bbox {list(numbers)} is empty or inverted: {'x1 >= x2' if x1 >= x2 else 'y1 >= y2'}",
            hint="boxes are [x1, y1, x2, y2] with x1 < x2 and y1 < y2, not [x, y, width, height]",
        )
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise FormError(f"bbox {list(numbers)} leaves the {width}x{height} image {image}", hint=where)
