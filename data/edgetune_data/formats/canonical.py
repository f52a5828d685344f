"""edgetune's own JSON Lines (docs/data.md), as it is: only the pictures are resolved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, object_rows
from edgetune_data.formats.sniffing import Sniffed
from edgetune_data.settings import ReadSettings

DATA = "data.jsonl"
VERSION = 1
_SCHEMA = "record.schema.json"


@cache
def record_schema() -> dict[str, Any]:
    """Return the schema of one line, JSON Schema draft 2020-12; its `$id` ends with the version."""
    schema: dict[str, Any] = json.loads((resources.files("edgetune_data") / _SCHEMA).read_text(encoding="utf-8"))
    return schema


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the data file, of a folder that `edgetune data` wrote if `path` is one."""
    return [path / DATA if path.is_dir() else path]


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each line."""
    return object_rows(files(source.path, source.options)[0], partial(_convert, source))


def _convert(source: Source, record: Mapping[str, Any]) -> Value:
    value = dict(record)
    find = source.pictures.path
    if isinstance(value.get("image"), str):
        value["image"] = find(value["image"])
    if isinstance(value.get("images"), list):
        value["images"] = [find(image) if isinstance(image, str) else image for image in value["images"]]
    return _messages(value) if "conversations" in value else value


def _messages(value: Value) -> Value:
    """Return a conversation in LLaVA's words in ours; one that is malformed stays, for its check to say why."""
    turns = value["conversations"]
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and set(turn) == {"from", "value"} for turn in turns
    ):
        return value
    roles = {"human": "user", "gpt": "assistant"}
    said = [{"role": roles.get(str(turn["from"]), turn["from"]), "content": turn["value"]} for turn in turns]
    rest = {key: item for key, item in value.items() if key not in ("conversations", "image")}
    return {"messages": said, "images": [value["image"]] if "image" in value else [], **rest}


def _sniff(found: Sniffed) -> bool:
    if found.is_folder:
        return (found.path / DATA).is_file()
    if found.is_json_lines:
        return not found.telling
    return bool(found.records) and {"image", "text", "bbox"} <= set(found.records[0])


FORMAT = Format(
    name="edgetune",
    title="edgetune's own JSONL",
    sniff=_sniff,
    rows=rows,
    options=TURNS_OPTIONS,
    files=files,
)
