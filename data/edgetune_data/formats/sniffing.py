"""What a file or folder looks like: the facts that formats recognise themselves by."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from edgetune_data.pictures import is_path
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import decode_json, read_json_value

TURNS = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE = (
    *("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution"),
    *("text", "completion", "content"),
)
"""The keys, in any case, under which data sets have turns, a question and its answer."""

_TELLING = frozenset((*TURNS, *QUERY, *RESPONSE)) - {"text", "content", "completion"}
_SNIFFED = 1000  # so many records of a JSONL file are looked at


@dataclass(frozen=True)
class Sniffed:
    """A file or folder that is there; everything else is read when it is asked for, once.

    Attributes:
        path: the file or folder.
    """

    path: Path

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.is_dir()

    @cached_property
    def names(self) -> frozenset[str]:
        """The names in a folder; none for a file."""
        return frozenset(file.name for file in self.path.iterdir()) if self.is_folder else frozenset()

    @cached_property
    def suffix(self) -> str:
        """A file's suffix in lower case, e.g. ".json"; empty for a folder."""
        return "" if self.is_folder else self.path.suffix.lower()

    @cached_property
    def is_json_lines(self) -> bool:
        """Whether it is a file of one JSON value a line."""
        return not self.is_folder and is_json_lines(self.path)

    @cached_property
    def records(self) -> tuple[Mapping[str, Any], ...]:
        """The objects of a JSONL file, the first 1000 that can be decoded, or of a JSON array; else none."""
        if self.is_json_lines:
            with self.path.open("rb") as stream:
                return tuple(_decoded(islice((line for line in stream if line.strip()), _SNIFFED)))
        value = self.value
        return tuple(record for record in value if isinstance(record, dict)) if isinstance(value, list) else ()

    @cached_property
    def value(self) -> Any:
        """The one JSON value of a file, or None where it holds none.

        Raises:
            InputError: the file is called JSON and is not.
        """
        if self.is_folder or self.is_json_lines:
            return None
        try:
            return read_json_value(self.path)
        except InputError:
            if self.suffix == ".json":
                raise
            return None

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of a file that is one JSON object; else none."""
        return frozenset(self.value) if isinstance(self.value, dict) else frozenset()

    @cached_property
    def telling(self) -> Mapping[str, Any]:
        """The record that tells the format: the first of an array, the first of JSONL that cannot be edgetune's own."""
        return next((record for record in self.records if not (self.is_json_lines and is_canonical(record))), {})


def is_json_lines(path: Path) -> bool:
    """Whether a file holds one JSON value a line, rather than one in all."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    with path.open("rb") as stream:
        first = next((line for line in stream if line.strip()), b"")
        more = any(line.strip() for line in stream)
    if not more or not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        return False
    try:
        json.loads(first)
    except json.JSONDecodeError:
        return False  # an object over several lines
    except (ValueError, RecursionError):
        return True  # a line with a number or a nesting that its reader refuses
    return True


def _decoded(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = decode_json(line.removeprefix(codecs.BOM_UTF8))
        except InputError:
            continue  # its reader tells what is wrong with it
        if isinstance(value, dict):
            yield value


def is_spoken(record: Mapping[str, Any]) -> bool:
    """Whether a record has turns, or a question or an answer under one of their usual names."""
    return any(key.lower() in _TELLING for key in record)


def is_canonical(record: Mapping[str, Any]) -> bool:
    """Whether a record could be canonical, right or wrong, and nothing in it belongs to another format."""
    if "messages" in record:
        turns = record["messages"] if isinstance(record["messages"], list) else []
        foreign = {"bbox_type"} & set(record["objects"]) if isinstance(record.get("objects"), dict) else set()
        plain = all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns)
        images = record["images"] if isinstance(record.get("images"), list) else []
        scale = any(isinstance(turn, dict) and "loss_scale" in turn for turn in turns)
        held = any(not isinstance(image, str) or not is_path(image) for image in images)
        whole = "image" not in record and not isinstance(record.get("images"), str)
        return plain and whole and not (foreign or held or scale or {"system", "channel"} & set(record))
    image = record.get("image")
    if not isinstance(image, str):
        return "image" not in record and not is_spoken(record)
    if {"answers", "question_id", "questionId"} & set(record):
        return False
    if "conversations" in record:
        return set(record) <= {"image", "conversations", "id", "meta"}
    return bool({"text", "bbox", "question", "answer"} & set(record)) or not is_spoken(record)
