"""Reading a data set of any known format, for the verbs and for whoever wants its records.

>>> from edgetune_data.read import load, open_records
>>> records = load(Path("instances.json"))                        # what train, calibrate and eval work on
>>> for value, source in open_records(Path("train.jsonl")): ...   # canonical JSON, and where it comes from
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune_core.stage import check_input
from edgetune_data import text_boxes
from edgetune_data.formats import canonical, find
from edgetune_data.formats.base import FLAGS, Format, Row, Source, Value
from edgetune_data.formats.sniffing import is_json_lines
from edgetune_data.manifest import beside
from edgetune_data.pictures import Pictures
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import upright_size
from edgetune_runtime.json_file import decode_json
from edgetune_runtime.manifest import verify_listed
from edgetune_runtime.records import AnyRecord, read_entries, record_of
from edgetune_runtime.records.dialogue import Name, Picture, Place
from edgetune_runtime.records.forms import Conversation, FormError, Parts, read_form

_CAPTIONS = 'captions, which are records with a text and no bbox (an absent object needs "bbox": [])'


@dataclass(frozen=True)
class Item:
    """One record of a data set, or what should have been one.

    Attributes:
        path: the file that it stands in.
        place: where it stands there: ":17" for a line, "#42" for an object of another format.
        value: the canonical object, its pictures as paths from the current folder; None when there is none.
        form: what the object says, or None when it has no known form.
        error: why it has none, or None.
        raw: what the file holds there, a line as bytes.
    """

    path: Path
    place: str
    value: Value | None
    form: Parts | Conversation | None
    error: InputError | None = None
    raw: Any = None

    def record(self) -> AnyRecord:
        """Return it decoded, its pictures and boxes checked.

        Raises:
            InputError: what is wrong with it, as "file:line: ...".
        """
        try:
            if self.error is not None or self.value is None:
                raise self.error or FormError("no record")
            return record_of(self.value, Path(), self.name)
        except InputError as error:
            raise InputError(f"{self.source}: {error}", hint=error.hint) from error

    @property
    def found(self) -> Any:
        """What the file holds there, decoded as far as it can be."""
        if not isinstance(self.raw, bytes):
            return self.raw
        try:
            return decode_json(self.raw)
        except InputError:
            return self.raw.decode("utf-8", errors="replace").rstrip("\n")

    @property
    def source(self) -> str:
        """Where it stands, e.g. "data/train.jsonl:17"."""
        return f"{self.path}{self.place}"

    @property
    def name(self) -> str:
        """Where it stands without folders, e.g. "train.jsonl:17" or "instances.json#139/cup"."""
        return f"{self.path.name}{self.place}"

    @property
    def line(self) -> str:
        """Where it stands in its file, e.g. "17"."""
        return self.place.removeprefix(":")

    @property
    def images(self) -> tuple[Path, ...]:
        """The pictures it names."""
        if self.form is None:
            return ()
        names = (self.form.image,) if isinstance(self.form, Parts) else self.form.images
        return tuple(Path(name) for name in names)

    @property
    def places(self) -> list[Place]:
        """Its boxes and points as they are written, in order."""
        if isinstance(self.form, Parts):
            return [Place(tuple(box)) for box in self.form.boxes or []]
        turns = self.form.turns if self.form else ()
        return [part for turn in turns for part in turn.parts if isinstance(part, Place)]

    @property
    def texts(self) -> list[str]:
        """Everything that is said in it and becomes tokens."""
        if isinstance(self.form, Parts):
            words = [self.form.request or self.form.text, *self.form.labels, *self.form.answers]
            return list(dict.fromkeys(words))
        turns = self.form.turns if self.form else ()
        parts = [part for turn in turns for part in turn.parts if isinstance(part, str | Name)]
        return [part.text if isinstance(part, Name) else part for part in parts]

    @property
    def labels(self) -> list[str]:
        """The names of its boxes, as far as it has names."""
        if isinstance(self.form, Parts):
            return self.form.labels
        turns = self.form.turns if self.form else ()
        return [part.text for turn in turns for part in turn.parts if isinstance(part, Name)]

    @property
    def kind(self) -> str:
        """Either "ground", "vqa", "dialogue" or, when it cannot be read, "unreadable"."""
        if self.form is None:
            return "unreadable"
        if isinstance(self.form, Parts):
            return "vqa" if self.form.boxes is None else "ground"
        return "dialogue"


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
        BundleError: a file was changed after the stage that wrote it.
    """

    def __init__(self, path: Path, format: str = "auto", options: ReadSettings | None = None) -> None:
        options = options or ReadSettings()
        self.path = path
        self.format: Format = find(format, path)
        if not path.exists():
            raise InputError(f"{path}: no such data file")
        check_input(path, "data")
        stray = sorted(options.given() - set(self.format.options))
        if stray:
            known = ", ".join(FLAGS[name] for name in self.format.options)
            raise InputError(
                f"{FLAGS[stray[0]]} means nothing for the format {self.format.name}",
                hint=f"it takes {known}" if known else "it takes no options",
            )
        self.files = self.format.files(path, options)
        verify_listed(self.files)
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
        """Yield each record, converted; its pictures are not looked at yet.

        Raises:
            InputError: a file cannot be read at all, or has no records.
        """
        empty = True
        phrases: set[tuple[Any, str]] = set()
        frame = self._text_frame()
        for row in self.format.rows(self._source):
            empty = False
            item = _item(row, frame, self._source.options)
            if isinstance(item.form, Parts) and item.kind == "ground":
                asked = (item.form.image, item.form.text)
                self._source.notes[self._repeated] += asked in phrases
                phrases.add(asked)
            keys = set(item.value or {})
            self._source.notes[_CAPTIONS] += {"image", "text"} <= keys and "bbox" not in keys
            if frame is None and item.form is not None:
                self._source.notes[text_boxes.REMARK] += bool(text_boxes.written(item.form))
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


def _item(row: Row, frame: text_boxes.TextFrame | None, options: ReadSettings) -> Item:
    value = None
    try:
        value = row.build()
        if frame is not None:
            value = text_boxes.placed(value, frame, options)
        return Item(row.file, row.place, value, read_form(value), None, row.raw)
    except InputError as error:
        return Item(row.file, row.place, value, None, error, row.raw)


def open_records(path: Path, format: str = "auto", options: ReadSettings | None = None) -> Iterator[tuple[Value, str]]:
    """Yield each record as canonical JSON, with where it comes from.

    The paths of pictures lead from the current folder, so `record_of(value, Path(), source)` decodes a value.

    Raises:
        InputError: the first thing that is wrong, as "file:line: ..." or "file#id: ...".
    """
    for item in Reading(path, format, options):
        item.record()
        yield item.value or {}, item.name


def load(path: Path, format: str = "auto", options: ReadSettings | None = None) -> list[AnyRecord]:
    """Return the records of a data set, decoded and checked.

    Raises:
        InputError: the first thing that is wrong, as "file:line: ..." or "file#id: ...".
    """
    plain = plain_file(path, format, options)
    if plain is not None:
        return read_entries(plain)
    return [item.record() for item in Reading(path, format, options)]


def gather(path: Path) -> list[Item]:
    """Return all records of a data set of any known format, readable or not.

    Raises:
        InputError: nothing is there, its format is not recognised, or it has no records.
    """
    reading = Reading(path)
    items = list(reading)
    if reading.pictures.written:
        raise InputError(
            f"{path}: its pictures are inside the data", hint=f"edgetune data convert {path} --output DIR writes files"
        )
    return items


def checked(path: Path) -> list[Item]:
    """Return all records of a data set of any known format, which all have to be right: form, pictures and boxes.

    Raises:
        InputError: the first one that is not, as "file:line: ..."; `edgetune data check` tells all of them.
    """
    items = gather(path)
    for item in items:
        try:
            item.record()
        except InputError as error:
            raise InputError(
                str(error), hint=error.hint or f"edgetune data check {path} tells about all records"
            ) from error
    return items


def image_sizes(items: Iterable[Item]) -> dict[Path, tuple[int, int]]:
    """Return the upright (width, height) in pixels of every picture, from the headers.

    Raises:
        ImageError: one is missing or is none.
    """
    return {image: upright_size(image) for image in dict.fromkeys(path for item in items for path in item.images)}


def turn_text(parts: tuple[Any, ...]) -> str:
    """Return a turn's words with names in place; pictures and places are left out."""
    pieces = (part if isinstance(part, str) else part.text for part in parts if not isinstance(part, Picture | Place))
    return "".join(pieces).strip()


def plain_file(path: Path, format: str = "auto", options: ReadSettings | None = None) -> Path | None:
    """Return the file that the runtime's own reader reads as well, or None where this package has to."""
    if (options and options.given()) or (path.exists() and find(format, path).name != "edgetune"):
        return None
    file = path / canonical.DATA if path.is_dir() else path
    return None if file.is_file() and (not is_json_lines(file) or _holds_pictures(file)) else file


_PICTURE = re.compile(rb'"(?:data:|https?:|file:|[A-Za-z0-9+/\\]{200})', re.IGNORECASE)


def _holds_pictures(path: Path) -> bool:
    """Whether a text of a JSONL file could be a picture or its address; the runtime's own reader takes only paths."""
    with path.open("rb") as stream:
        return any(_PICTURE.search(line) for line in stream)


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
    plain = plain_file(path)
    files = [plain] if plain is not None else Reading(path).files
    inputs = {role if number == 1 else f"{role} {number}": file for number, file in enumerate(files, start=1)}
    listed = beside(files[0])
    return inputs | ({f"{role} manifest": listed} if listed else {})
