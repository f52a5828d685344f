"""The formats that are read: their names, what they are, which options they know, and how a file is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, cast

from edgetune_data.canonical import DATA
from edgetune_data.refcoco import is_refs
from edgetune_data.source import Options, Row, Source, is_json_lines
from edgetune_data.swift import ALIASES
from edgetune_runtime.errors import InputError

_SNIFFED = 1000
"""So many records of a file are looked at to tell its format."""


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        name: as `--format` takes it.
        line: what it is, in a line.
        module: of this package, with `files(path, options)` and `rows(source)`.
        options: fields of `Options` that it knows; others are refused.
    """

    name: str
    line: str
    module: str
    options: frozenset[str]

    def files(self, path: Path, options: Options) -> list[Path]:
        """Return the files that hold the records, the first one first."""
        return cast("list[Path]", import_module(f"edgetune_data.{self.module}").files(path, options))

    def rows(self, source: Source) -> Iterator[Row]:
        """Yield the records to be."""
        read = cast("Callable[[Source], Iterator[Row]]", import_module(f"edgetune_data.{self.module}").rows)
        return read(source)


_ALL = {"image_root", "allow_download"}
_SPOKEN = {"orientation", "text_boxes"}
_TABLE = {"split", "box_format", "columns", "group", *_SPOKEN}
FORMATS = {
    name: Format(name, line, module, frozenset(_ALL | options))
    for name, line, module, options in (
        ("swift", "ms-swift: messages, images, objects; query and response (JSON, JSONL)", "swift", _SPOKEN),
        ("llava", "LLaVA: image and conversations (JSON, JSONL)", "llava", _SPOKEN),
        ("coco", "COCO detection: instances with categories (JSON)", "coco", {"orientation", "crowd"}),
        ("refcoco", "RefCOCO: refs beside instances.json", "refcoco", {"split", "orientation", "annotations"}),
        ("labelstudio", "Label Studio's JSON export", "labelstudio", {"orientation", "questions", "columns"}),
        ("csv", "one row a record (CSV, TSV)", "table", _TABLE),
        ("parquet", "one row a record; a file or a folder of them", "table", _TABLE),
        ("vqa", "VQAv2's pair of files; flat lists of question and answers", "vqa", {"split", "annotations", *_SPOKEN}),
        ("edgetune", "edgetune's own JSONL", "canonical", _SPOKEN),
    )
}


def find(name: str, path: Path) -> Format:
    """Return the format of this name, or for "auto" that of the file or folder.

    Raises:
        InputError: there is no such format, nothing at `path`, or nothing that is recognised.
    """
    if name == "auto":
        return sniff(path)
    if name not in FORMATS:
        raise InputError(f"format {name!r} is not one of auto, {', '.join(FORMATS)}")
    return FORMATS[name]


def sniff(path: Path) -> Format:
    """Return the format of a file or folder, told by names, keys and shapes.

    Raises:
        InputError: there is nothing, or it is none that is known.
    """
    if not path.exists():
        raise InputError(f"{path}: no such data file")
    changed = path.stat()
    name = _folder(path) if path.is_dir() else _sniffed(path.absolute(), changed.st_mtime_ns, changed.st_size)
    if name is None:
        raise InputError(
            f"{path}: not recognised as any of {', '.join(FORMATS)}",
            hint="name its format: edgetune data convert --format NAME",
        )
    return FORMATS[name]


# A verb asks several times, and a JSON file has to be read whole to tell.
@lru_cache(maxsize=64)
def _sniffed(path: Path, _changed: int, _size: int) -> str | None:
    return _file(path)


def _folder(path: Path) -> str | None:
    if (path / DATA).is_file():
        return "edgetune"
    names = [file.name for file in path.iterdir()]
    if any(is_refs(path / name) for name in names):
        return "refcoco"
    if any(name.endswith("questions.json") for name in names):
        return "vqa"
    return "parquet" if next(path.rglob("*.parquet"), None) else None


def _file(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".parquet"):
        return "csv" if suffix != ".parquet" else "parquet"
    if is_refs(path) or suffix in (".p", ".pkl", ".pickle"):
        return "refcoco"
    if is_json_lines(path):
        return _lines(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        keys = set(value)
        if {"images", "annotations", "categories"} <= keys:
            return "coco"
        if "questions" in keys or isinstance(value.get("data"), list):
            return "vqa"
        return None
    records = [record for record in value if isinstance(record, dict)] if isinstance(value, list) else []
    if not records:
        return None
    if "sentences" in records[0]:
        return "refcoco"
    if isinstance(records[0].get("data"), dict):
        return "labelstudio"
    if "question" in records[0] and "image" in records[0]:
        return "vqa"
    return "llava" if _is_llava(records[0]) else _spoken(records[0])


def _lines(path: Path) -> str:
    """Return the format of a JSONL file; ours where it could be, so that its mistakes are told in its own terms."""
    with path.open("rb") as stream:
        records = list(_decoded(islice((line for line in stream if line.strip()), _SNIFFED)))
    foreign = next((record for record in records if not _is_ours(record)), None)
    if foreign is None:
        return "edgetune"
    if "question" in foreign and "image" in foreign:
        return "vqa"
    return "llava" if _is_llava(foreign) else _spoken(foreign) or "edgetune"


def _decoded(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            continue  # its reader tells what is wrong with it
        if isinstance(value, dict):
            yield value


def _is_llava(record: Mapping[str, Any]) -> bool:
    return "conversations" in record and "image" in record


def _spoken(record: Mapping[str, Any]) -> str | None:
    return "swift" if any(key.lower() in ALIASES for key in record) else None


def _is_ours(record: Mapping[str, Any]) -> bool:
    """Whether a record could be canonical, right or wrong, and nothing in it belongs to another format."""
    if "messages" in record:
        turns = record["messages"] if isinstance(record["messages"], list) else []
        foreign = {"bbox_type"} & set(record["objects"]) if isinstance(record.get("objects"), dict) else set()
        plain = all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns)
        images = record["images"] if isinstance(record.get("images"), list) else []
        scale = any(isinstance(turn, dict) and "loss_scale" in turn for turn in turns)
        held = any(not isinstance(image, str) or image.startswith(("data:", "http://", "https://")) for image in images)
        whole = "image" not in record and not isinstance(record.get("images"), str)
        return plain and whole and not (foreign or held or scale or {"system", "channel"} & set(record))
    image = record.get("image")
    if not isinstance(image, str):
        return "image" not in record and not any(key.lower() in ALIASES for key in record)
    if image.startswith(("data:", "http://", "https://")) or {"answers", "question_id", "questionId"} & set(record):
        return False
    if "conversations" in record:
        return set(record) <= {"image", "conversations", "id", "meta"}
    return bool({"text", "bbox", "question", "answer"} & set(record)) or not _spoken(record)
