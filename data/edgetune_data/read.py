"""Reading a data set of any known format, for the verbs and for whoever wants its records.

>>> from edgetune_data.read import load, open_records
>>> records = load(Path("instances.json"))                        # what train, calibrate and eval work on
>>> for value, source in open_records(Path("train.jsonl")): ...   # canonical JSON, and where it comes from
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgetune_data import text_boxes
from edgetune_data.formats import Format, find
from edgetune_data.manifest import beside
from edgetune_data.pictures import Pictures
from edgetune_data.source import Options, Row, Source, Value
from edgetune_runtime.errors import InputError
from edgetune_runtime.records import Entry, Record, read_entries, record_of

_OPTION_OF = {
    "image_root": "--image-root",
    "split": "--split",
    "box_format": "--box-format",
    "orientation": "--orientation",
    "annotations": "--annotations",
    "columns": "--column",
    "questions": "--question",
    "group": "--group-rows",
    "crowd": "--crowd",
    "text_boxes": "--text-boxes",
    "allow_download": "--allow-download",
}


@dataclass(frozen=True)
class Item:
    """One record of a data set, good or bad.

    Attributes:
        source: file name and place, e.g. "data.jsonl:17" or "instances.json#139/cup".
        where: the same with the file's whole path, for messages.
        raw: what the file holds there, as far as it could be decoded.
        value: the canonical record, checked, its pictures as paths from the current folder; None for a bad one.
        entry: the same, decoded.
        problem: why there is no value, in one line.
    """

    source: str
    where: str
    raw: Any
    value: Value | None
    entry: Entry | None
    problem: InputError | None


class Reading:
    """A data set being read; iterating yields its items.

    Args:
        path: a file or a folder.
        format: the name of a format, or "auto".
        options: how to read it.

    Attributes:
        format: what it is.
        files: those that hold its records.
        notes: remark -> how often, complete after the iteration.

    Raises:
        InputError: nothing is there, the format is not recognised, or an option does not belong to it.
    """

    def __init__(self, path: Path, format: str = "auto", options: Options | None = None) -> None:
        options = options or Options()
        self.path = path
        self.format: Format = find(format, path)
        if not path.exists():
            raise InputError(f"{path}: no such data file")
        stray = sorted(options.given() - self.format.options)
        if stray:
            raise InputError(f"{_OPTION_OF[stray[0]]} means nothing for the format {self.format.name}")
        self.files = self.format.files(path, options)
        root = options.image_root or self.files[0].parent
        self._source = Source(path, options, Pictures(root, allow_download=options.allow_download))

    @property
    def notes(self) -> Counter[str]:
        """Remarks on what was left out or added, with how often."""
        return +self._source.notes

    @property
    def _repeated(self) -> str:
        join = ", which --group-rows joins" if "group" in self.format.options else ""
        return f"records with the picture and the phrase of an earlier one{join}"

    @property
    def pictures(self) -> Pictures:
        """What wrote the pictures that came inside the data."""
        return self._source.pictures

    def __iter__(self) -> Iterator[Item]:
        """Yield each record, converted and checked.

        Raises:
            InputError: a file cannot be read at all, or has no records.
        """
        empty = True
        phrases: set[tuple[Any, str]] = set()
        frame = self._text_frame()
        for row in self.format.rows(self._source):
            empty = False
            item = _item(row, frame, self._source.options)
            if isinstance(item.entry, Record) and item.entry.kind == "ground":
                asked = (item.entry.image, item.entry.text)
                self._source.notes[self._repeated] += asked in phrases
                phrases.add(asked)
            if frame is None and item.entry is not None:
                self._source.notes[text_boxes.REMARK] += bool(text_boxes.written(item.entry))
            yield item
        if empty:
            raise InputError(f"{self.path}: no records in this file")

    def _text_frame(self) -> text_boxes.TextFrame | None:
        """Return the frame of boxes that are written as text, which "auto" tells from all of them; None leaves them."""
        frame = self._source.options.text_boxes
        if frame != "auto":
            return frame
        looked = replace(self._source, notes=Counter())
        found: list[tuple[text_boxes.Written, str]] = []
        for row in self.format.rows(looked):
            with contextlib.suppress(InputError):  # told when the record is read
                found += text_boxes.with_picture(row.build())
        try:
            return text_boxes.decide(found, looked.options)
        except InputError as error:
            raise InputError(f"{self.path}: {error}", hint=error.hint) from error


def _item(row: Row, frame: text_boxes.TextFrame | None, options: Options) -> Item:
    source, where = f"{row.file.name}{row.place}", f"{row.file}{row.place}"
    try:
        value = row.build()
        if frame is not None:
            value = text_boxes.placed(value, frame, options)
        entry = record_of(value, Path(), source)
    except InputError as error:
        problem = InputError(f"{where}: {error}", hint=error.hint)
        return Item(source, where, _decoded(row.raw), None, None, problem)
    return Item(source, where, None, value, entry, None)


def _decoded(raw: Any) -> Any:
    if not isinstance(raw, bytes):
        return raw
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", errors="replace").rstrip("\n")


def _good(items: Iterator[Item]) -> Iterator[tuple[Value, Entry, str]]:
    for item in items:
        if item.value is None or item.entry is None:
            assert item.problem is not None
            raise item.problem
        yield item.value, item.entry, item.source


def open_records(path: Path, format: str = "auto", options: Options | None = None) -> Iterator[tuple[Value, str]]:
    """Yield each record as canonical JSON, with where it comes from.

    The paths of pictures lead from the current folder, so `record_of(value, Path(), source)` decodes a value.

    Raises:
        InputError: the first thing that is wrong, as "file:line: ..." or "file#id: ...".
    """
    for value, _, source in _good(iter(Reading(path, format, options))):
        yield value, source


def load(path: Path, format: str = "auto", options: Options | None = None) -> list[Entry]:
    """Return the records of a data set, decoded and checked.

    Raises:
        InputError: the first thing that is wrong, as "file:line: ..." or "file#id: ...".
    """
    if _is_plain(path, format, options):
        return read_entries(path)
    return [entry for _, entry, _ in _good(iter(Reading(path, format, options)))]


def _is_plain(path: Path, format: str, options: Options | None) -> bool:
    """Whether the runtime's own reader does."""
    if path.is_dir() or (options and options.given()):
        return False
    return not path.exists() or find(format, path).name == "edgetune"


@cache
def _process_folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="edgetune-data-")


def canonical_file(path: Path) -> Path:
    """Return a canonical JSONL file with the records of a data set: itself, or one that lives as long as the process.

    For what reads a file and not records, such as a worker in a process of its own.

    Raises:
        InputError: the first thing that is wrong, as "file:line: ..." or "file#id: ...".
    """
    if _is_plain(path, "auto", None):
        return path
    folder = Path(_process_folder().name) / str(len(list(Path(_process_folder().name).iterdir())))
    folder.mkdir()
    target = folder / f"{path.stem}.jsonl"
    with target.open("w", encoding="utf-8") as stream:
        for value, source in open_records(path):
            stream.write(json.dumps(with_source(absolute(value), source), ensure_ascii=False) + "\n")
    return target


def with_source(value: Mapping[str, Any], source: str) -> Value:
    """Return a record that says in its meta where it was converted from."""
    return {**value, "meta": {**value.get("meta", {}), "source": source}}


def absolute(value: Mapping[str, Any]) -> Value:
    """Return a record with absolute paths of its pictures."""
    return with_pictures(value, {name: str(Path(name).absolute()) for name in pictures_of(value)})


def pictures_of(value: Mapping[str, Any]) -> list[str]:
    """Return the paths of a canonical record's pictures."""
    return [value["image"]] if "image" in value else list(value.get("images", []))


def with_pictures(value: Mapping[str, Any], names: Mapping[str, str]) -> Value:
    """Return a record with other paths for its pictures."""
    if "image" in value:
        return {**value, "image": names[value["image"]]}
    return {**value, "images": [names[name] for name in value["images"]]} if "images" in value else dict(value)


def stage_inputs(role: str, path: Path) -> dict[str, Path]:
    """Return what a stage that reads a data set depends on: its files by role, and its manifest where it has one.

    Raises:
        InputError: the data set is not there, or not recognised.
    """
    files = [path] if _is_plain(path, "auto", None) else Reading(path).files
    inputs = {role if number == 1 else f"{role} {number}": file for number, file in enumerate(files, start=1)}
    listed = beside(files[0])
    return inputs | ({f"{role} manifest": listed} if listed else {})
