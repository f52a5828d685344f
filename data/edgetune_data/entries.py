"""Records of a data file as they are, good or bad: what a reader that stops at the first error cannot give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_data.formats import sniff
from edgetune_data.pictures import Pictures
from edgetune_data.source import Options, Row, Source
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import upright_size
from edgetune_runtime.records import record_of
from edgetune_runtime.records.dialogue import Name, Picture, Place
from edgetune_runtime.records.forms import Conversation, Parts, read_form


@dataclass(frozen=True)
class Entry:
    """One record of a data file, or what should have been one.

    Attributes:
        path: the data file.
        place: where it stands in it: ":17" for a line, "#42" for an object of another format.
        value: the canonical object, its pictures as paths from the current folder; None when there is none.
        form: what the object says, or None when it has no known form.
        error: why it has none, or None.
    """

    path: Path
    place: str
    value: Mapping[str, Any] | None
    form: Parts | Conversation | None
    error: InputError | None = None

    @property
    def source(self) -> str:
        """Where it stands, e.g. "data/train.jsonl:17"."""
        return f"{self.path}{self.place}"

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


def gather(path: Path) -> list[Entry]:
    """Return all records of a data set of any known format, readable or not.

    Raises:
        InputError: nothing is there, its format is not recognised, or it has no records.
    """
    format, options = sniff(path), Options()
    source = Source(path, options, Pictures(format.files(path, options)[0].parent))
    entries = [_entry(row) for row in format.rows(source)]
    if not entries:
        raise InputError(f"{path}: no records in this file")
    if source.pictures.written:
        raise InputError(
            f"{path}: its pictures are inside the data", hint=f"edgetune data convert {path} --output DIR writes files"
        )
    return entries


def _entry(row: Row) -> Entry:
    value: Mapping[str, Any] | None = None
    try:
        value = row.build()
        return Entry(row.file, row.place, value, read_form(value))
    except InputError as error:
        return Entry(row.file, row.place, value, None, error)


def checked(path: Path) -> list[Entry]:
    """Return all records of a data set of any known format, which all have to be right: form, pictures and boxes.

    Raises:
        InputError: the first one that is not, as "file:line: ..."; `edgetune data check` tells all of them.
    """
    entries = gather(path)
    for entry in entries:
        try:
            if entry.error is not None:
                raise entry.error
            record_of(entry.value or {}, Path(), entry.source)
        except InputError as error:
            hint = f"edgetune data check {path} tells about all records"
            raise InputError(f"{entry.source}: {error}", hint=error.hint or hint) from error
    return entries


def image_sizes(entries: Iterable[Entry]) -> dict[Path, tuple[int, int]]:
    """Return the upright (width, height) in pixels of every picture, from the headers.

    Raises:
        ImageError: one is missing or is none.
    """
    return {image: upright_size(image) for image in dict.fromkeys(path for entry in entries for path in entry.images)}


def turn_text(parts: tuple[Any, ...]) -> str:
    """Return a turn's words with names in place; pictures and places are left out."""
    pieces = (part if isinstance(part, str) else part.text for part in parts if not isinstance(part, Picture | Place))
    return "".join(pieces).strip()
