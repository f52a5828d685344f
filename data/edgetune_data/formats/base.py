"""What formats share: what a format is, the options of a read, its pictures, and rows that say where they come from.

A format of another package is a `Format` under the entry point group `edgetune.formats`:

    [project.entry-points."edgetune.formats"]
    boxes = "my_package.boxes:FORMAT"
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from edgetune_data.formats.sniffing import Sniffed, is_json_lines
from edgetune_data.pictures import Pictures
from edgetune_data.settings import BoxFormat, ReadSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records import decode_line
from edgetune_runtime.records.forms import FormError

Value = dict[str, Any]
"""A canonical record as decoded JSON, its pictures as paths from the current folder (or absolute ones)."""

BOX_FORMATS = get_args(BoxFormat)


@dataclass
class Source:
    """One data set being read.

    Attributes:
        path: what the user named, a file or a folder.
        options: how to read it.
        pictures: turns what the file says of a picture into a path.
        notes: remark -> how often it applied, for what is left out or added on purpose.
    """

    path: Path
    options: ReadSettings
    pictures: Pictures
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Row:
    """One record to be: `build` makes its value, or raises InputError with what is wrong.

    `place` is ":17" for a line and "#42" for an object with an id (or else its index, from 0) in the file.
    """

    file: Path
    place: str
    raw: Any
    build: Callable[[], Value]


def one_file(path: Path, options: ReadSettings) -> list[Path]:
    """Return the file that the user named, which holds all records."""
    return [path]


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        name: as `--format` takes it.
        title: what it is, in a line.
        sniff: whether a file or folder is of this format, as far as names, keys and shapes tell.
        rows: yields the records to be.
        options: the fields of `ReadSettings` that it knows, with what they mean for it; others are refused.
        files: the files that hold the records, the first one first; raises InputError where one is missing.
    """

    name: str
    title: str
    sniff: Callable[[Sniffed], bool]
    rows: Callable[[Source], Iterator[Row]]
    options: Mapping[str, str] = field(default_factory=dict)
    files: Callable[[Path, ReadSettings], list[Path]] = one_file


IMAGE_ROOT = {"image_root": "the folder that relative paths of pictures start from, in place of the data file's own"}
PICTURES = IMAGE_ROOT | {"allow_download": "fetch pictures from http(s) addresses"}
BOXES = PICTURES | {"orientation": "whether boxes on pictures with an EXIF rotation were drawn upright or as stored"}
TURNS_OPTIONS = BOXES | {"text_boxes": "the frame of boxes that are written as text into conversations"}
"""Options that most formats know: of those with pictures, with boxes on them, with questions and answers about them."""

ABSENT = {"absent": "phrases that were looked for on every picture: one without a box of it lacks the object"}
"""The option of formats in which a picture that was annotated says nothing of what is not there."""

FLAGS = {
    "image_root": "--image-root",
    "split": "--split",
    "box_format": "--box-format",
    "orientation": "--orientation",
    "annotations": "--annotations",
    "columns": "--column",
    "questions": "--question",
    "group": "--group-rows",
    "crowd": "--crowd",
    "absent": "--absent",
    "text_boxes": "--text-boxes",
    "allow_download": "--allow-download",
}
"""Field of `ReadSettings` -> the command line's name of it."""

Convert = Callable[[Mapping[str, Any]], Value]


def object_rows(path: Path, convert: Convert, *, key: str | None = None) -> Iterator[Row]:
    """Yield a row for each object of a JSON Lines file or a JSON array (or the array under `key`)."""
    if is_json_lines(path):
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield Row(path, f":{number}", line, partial(_from_line, line, number, convert))
        return
    values = read_json_value(path)
    if isinstance(values, dict):
        values = values.get(key) if key else [values]
    if not isinstance(values, list):
        raise InputError(f"{path}: {key or 'the file'} must be a list of objects")
    for index, value in enumerate(values):
        name = value.get("id", index) if isinstance(value, dict) else index
        yield Row(path, f"#{name}", value, partial(_from_object, value, convert))


def _from_line(line: bytes, number: int, convert: Convert) -> Value:
    return convert(decode_line(line, number))


def _from_object(value: Any, convert: Convert) -> Value:
    if not isinstance(value, dict):
        raise FormError(f"a record is a JSON object, got {type(value).__name__}")
    return convert(value)


def carried(record: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return what a record says beside the known keys, with what its own `meta` says.

    Raises:
        FormError: `meta` is no object.
    """
    meta = record.get("meta") or {}
    if not isinstance(meta, dict):
        raise FormError(f"'meta' must be an object, got {meta!r}")
    return {
        key: value for key, value in record.items() if key not in known and key != "meta" and value is not None
    } | meta


def absent_value(image: str, phrase: str) -> Value:
    """Return the record of a picture on which an object was looked for and is not."""
    return {"image": image, "text": phrase, "bbox": []}


def in_folders(files: Iterable[Path]) -> list[Path]:
    """Return files, those of a folder that holds nothing else as that folder: a data set may have a file a picture."""
    together: dict[Path, list[Path]] = {}
    for file in files:
        together.setdefault(file.parent, []).append(file)
    found: list[Path] = []
    for folder, held in together.items():
        found += [folder] if set(folder.iterdir()) == set(held) else held
    return found


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        InputError: the file is missing or not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such data file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


def number_in(text: str) -> float:
    """Return the number that a text holds in ASCII decimals; `float` also takes 1_0, nan, and digits of other scripts.

    Raises:
        ValueError: it holds no number, or one that is not finite.
    """
    number = float(text) if _DECIMAL.fullmatch(text.strip()) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a number")
    return number


def objects_of(path: Path, value: Any, key: str) -> list[dict[str, Any]]:
    """Return the list of objects under `key` of a file's JSON object.

    Raises:
        InputError: there is none.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"{path}: {key!r} must be a list of objects")
    return found
