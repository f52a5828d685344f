"""CSV and Parquet, read by the `datasets` library: a row is a record, and columns have names that can be mapped.

Columns: image; text with bbox (or x1, y1, x2, y2) and perhaps label; or question with answer (or answers); id; split.
Columns width and height, in pixels of the picture, are compared with the file where there are such. Parquet may also
hold messages or conversations, as ms-swift's JSON does. All cells of a CSV are read as text: "02" stays "02", and "NA"
is no missing value. Its columns are separated by commas, or by semicolons where the first line has no comma.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgetune_data.formats import swift
from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, number_in
from edgetune_data.frames import corners, frame_of
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.json_file import decode_json
from edgetune_runtime.records.forms import FormError

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", "text", "bbox", *CORNERS, "label", "question", "answer", "answers", "id", "split")
_TURNS = ("messages", "conversations")
_SIZE = ("width", "height")
_OTHER_NAMES = {
    "image": ("filename", "file_name", "file", "path", "image_path", "imageid", "image_id", "img"),
    "text": ("class", "class_name", "label", "labelname", "category", "name", "phrase", "caption"),
    "x1": ("xmin", "x_min", "left"),
    "y1": ("ymin", "y_min", "top"),
    "x2": ("xmax", "x_max", "right"),
    "y2": ("ymax", "y_max", "bottom"),
}
"""What tools call our columns, in lower case: for hints, since a name alone does not say what a column holds."""


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the tables: the file, or all Parquet files of a folder (those whose name starts with the split).

    Raises:
        InputError: the folder has none, or files of several splits and none was chosen.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*.parquet"))
    splits = {file.name.partition("-")[0] for file in found}
    if options.split and options.split in splits:
        found = [file for file in found if file.name.partition("-")[0] == options.split]
    elif len(splits) > 1 and not options.split:
        raise InputError(
            f"{path}: files of several splits: {', '.join(sorted(splits))}", hint="choose one with --split"
        )
    if not found:
        raise InputError(f"{path}: no Parquet files")
    return found


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each row, or for each picture and phrase when they are grouped."""
    for file in files(source.path, source.options):
        named = (_renamed(source, row) for row in _table(file))
        chosen = ((index, row) for index, row in enumerate(named) if _wanted(source, row, file))
        for index, members in _groups(chosen) if source.options.group else ((i, [row]) for i, row in chosen):
            build = partial(_convert, source, members)
            yield Row(file, f"#{index}", members if len(members) > 1 else members[0], build)


def _table(file: Path) -> Iterator[dict[str, Any]]:
    from datasets import Features, Value, load_dataset

    if not file.is_file():
        raise InputError(f"{file}: no such data file")
    options: dict[str, Any] = {"data_files": [str(file)], "split": "train", "streaming": True}
    try:
        if file.suffix.lower() == ".parquet":
            table = load_dataset("parquet", **options).decode(False)  # pictures stay as they are stored
        else:
            names, delimiter = _header(file)
            texts = Features({name: Value("string") for name in names})
            table = load_dataset("csv", features=texts, keep_default_na=False, delimiter=delimiter, **options)
        yield from table
    except (ValueError, OSError) as error:  # what pandas and Arrow raise on broken files
        raise InputError(f"{file}: cannot be read as a table: {error}") from error


def _header(file: Path) -> tuple[list[str], str]:
    """Return the names of the columns and what separates them."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            first = next(stream, "")
            delimiter = "\t" if file.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
            stream.seek(0)
            names = next(csv.reader(stream, delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not names or len(set(names)) < len(names):
        raise InputError(f"{file}: the first line must name each column once, got {names}")
    spaced = [name for name in names if name != name.strip()]
    if spaced:
        raise InputError(
            f"{file}: the column {spaced[0]!r} has spaces around its name",
            hint="write commas without spaces after them",
        )
    return names, delimiter


def _renamed(source: Source, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row under our names of columns; empty cells are left out."""
    ours = {theirs: name for name, theirs in source.options.columns.items()}
    absent = [theirs for theirs in ours if theirs not in row]
    if absent:
        raise InputError(f"{source.path}: there is no column {absent[0]!r}", hint=f"it has {', '.join(row)}")
    shadowed = set(ours.values()) & set(row) - set(ours)
    return {
        ours.get(name, name): value
        for name, value in row.items()
        if name not in shadowed and value is not None and value != ""
    }


def _wanted(source: Source, row: Mapping[str, Any], file: Path) -> bool:
    """Whether a row belongs to the chosen split, where rows or files say theirs."""
    split = source.options.split
    if not split or (file.name.partition("-")[0] == split and "split" not in row):
        return True
    if "split" not in row:
        raise InputError(f"{file}: --split {split}, but there is no column 'split'", hint="--column split=NAME")
    if row["split"] != split:
        source.notes["rows of other splits"] += 1
    return bool(row["split"] == split)


def _groups(rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    groups: dict[tuple[str, Any], tuple[int, list[dict[str, Any]]]] = {}
    for index, row in rows:
        key = (str(row.get("image")), row.get("text", index))
        groups.setdefault(key, (index, []))[1].append(row)
    yield from groups.values()


def _convert(source: Source, rows: list[dict[str, Any]]) -> Value:
    row = rows[0]
    spoken = [name for name in _TURNS if name in row]
    if spoken:
        return swift.convert(source, row)
    if "image" not in row:
        raise FormError("no picture: the column 'image' is missing or empty", hint=_naming(row, "image"))
    value: Value = {"image": source.pictures.path(row["image"])}
    if "question" in row:
        value |= {"question": str(row["question"]), "answer": _answer(row)}
    elif "text" in row:
        boxes = [box for member in rows for box in _boxes(source, value["image"], member)]
        value |= {"text": str(row["text"]), "bbox": boxes}
        if "label" in row:
            value["label"] = [str(m.get("label", m["text"])) for m in rows] if len(rows) > 1 else str(row["label"])
    else:
        raise FormError(
            "neither a phrase nor a question: the columns 'text' and 'question' are missing or empty",
            hint=_naming(row, "text"),
        )
    if "id" in row:
        value["id"] = row["id"]
    meta = {name: cell for name, cell in row.items() if name not in COLUMNS}
    try:
        json.dumps(meta)
    except TypeError as error:
        raise FormError(f"a column beside ours cannot be kept as JSON: {error}") from error
    return value | ({"meta": meta} if meta else {})


def _naming(row: Mapping[str, Any], missing: str) -> str:
    """Return the options that would name our columns, as far as the names of this table tell, `missing` at least."""
    theirs = {name.lower(): name for name in row}
    found = {
        ours: next(theirs[name] for name in names if name in theirs)
        for ours, names in _OTHER_NAMES.items()
        if ours not in row and any(name in theirs for name in names)
    }
    return " ".join(f"--column {ours}={name}" for ours, name in ({missing: "NAME"} | found).items())


def _answer(row: Mapping[str, Any]) -> Any:
    value = row.get("answers", row.get("answer"))
    if isinstance(value, str) and "answers" in row:
        value = _parsed(value, "answers")
    if isinstance(value, list):
        return [str(item.get("answer") if isinstance(item, dict) else item) for item in value]
    if value is None:
        raise FormError("no answer: the column 'answer' is missing or empty", hint="--column answer=NAME")
    return str(value)


def _parsed(text: str, name: str) -> Any:
    """Return the JSON list that a cell holds, with or without its brackets."""
    try:
        return decode_json(text if text.strip().startswith("[") else f"[{text}]")
    except InputError as error:
        raise FormError(f"{name} {excerpt(text)} is no list", hint='write it as JSON: "[1, 2, 3, 4]"') from error


def _boxes(source: Source, image: str, row: Mapping[str, Any]) -> list[list[float]]:
    """Return a row's boxes, xyxy in pixels of the upright picture."""
    if "bbox" in row:
        value = _parsed(row["bbox"], "bbox") if isinstance(row["bbox"], str) else row["bbox"]
    elif any(name in row for name in CORNERS):
        value = [row.get(name) for name in CORNERS]
    else:
        named = _naming(row, "")
        raise FormError(
            "no box: the columns 'bbox' and 'x1' to 'y2' are missing or empty",
            hint=named if "x1" in named else "write [] for an absent object",
        )
    if not isinstance(value, list):
        raise FormError(f"a bbox is four numbers, got {value!r}")
    boxes = [_numbers(box) for box in (value if all(isinstance(box, list) for box in value) else [value])]
    if not boxes:
        return []
    declared = None if any(name not in row for name in _SIZE) else (_size(row["width"]), _size(row["height"]))
    frame = frame_of(image, orientation=source.options.orientation, declared=declared)
    placed = []
    for box in boxes:
        if source.options.box_format is None and all(0 <= number <= 1 for number in box):
            raise FormError(
                f"bbox {box} lies within one pixel", hint="--box-format xyxy-norm1 if it is in shares of the picture"
            )
        numbers, unit = corners(box, source.options.box_format or "xyxy")
        placed.append(frame.upright(numbers, unit=unit))
    return placed


def _plain(cell: Any) -> float:
    """Return a cell, a text or a number already, as a number; raises TypeError or ValueError where it is none."""
    return number_in(cell) if isinstance(cell, str) else float(cell)


def _size(cell: Any) -> float:
    try:
        number = _plain(cell)
        return int(number) if number.is_integer() else number
    except (TypeError, ValueError) as error:
        raise FormError(f"width and height of the picture must be numbers, got {cell!r}") from error


def _numbers(box: list[Any]) -> list[float]:
    try:
        numbers = [_plain(number) for number in box]
    except (TypeError, ValueError) as error:
        comma = any(isinstance(number, str) and re.fullmatch(r"\s*-?\d+,\d+\s*", number) for number in box)
        hint = "write decimals with a point: 10.5" if comma else None
        raise FormError(f"a bbox is four numbers, got {box!r}", hint=hint) from error
    if len(numbers) != 4:
        raise FormError(f"a bbox is four numbers, got {box!r}")
    return numbers


_OPTIONS = TURNS_OPTIONS | {
    "split": "read only the rows of this split, told by the column 'split' or by the file's name",
    "box_format": "what the numbers of a box mean; xyxy in pixels by default",
    "columns": "our name of a column and the file's, as image=file_name",
    "group": "rows of the same picture and phrase are one record",
}
CSV = Format(
    name="csv",
    title="one row a record (CSV, TSV)",
    sniff=lambda found: found.suffix in (".csv", ".tsv"),
    rows=rows,
    options=_OPTIONS,
    files=files,
)
PARQUET = Format(
    name="parquet",
    title="one row a record; a file or a folder of them",
    sniff=lambda found: (
        found.suffix == ".parquet" or (found.is_folder and next(found.path.rglob("*.parquet"), None) is not None)
    ),
    rows=rows,
    options=_OPTIONS,
    files=files,
)
