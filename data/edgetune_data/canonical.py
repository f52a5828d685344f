"""edgetune's own JSON Lines (docs/data.md), as it is: only the paths of pictures are resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgetune_data.source import Options, Row, Source, Value, object_rows

DATA = "data.jsonl"


def files(path: Path, options: Options) -> list[Path]:
    """Return the data file, of a folder that `edgetune data` wrote if `path` is one."""
    return [path / DATA if path.is_dir() else path]


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each line."""
    return object_rows(files(source.path, source.options)[0], partial(_convert, source))


def _convert(source: Source, record: Mapping[str, Any]) -> Value:
    value = dict(record)
    root = source.pictures.root
    if isinstance(value.get("image"), str):
        value["image"] = str(root / value["image"])
    if isinstance(value.get("images"), list):
        value["images"] = [str(root / image) if isinstance(image, str) else image for image in value["images"]]
    return value
