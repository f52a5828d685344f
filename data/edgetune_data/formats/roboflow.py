"""Roboflow's JSONL for vision-language models: {"image", "prefix", "suffix"}, a request and the text that answers it.

Boxes stand in the suffix as text: JSON for Qwen, `<loc0123>` tokens for PaliGemma (see `edgetune_data.text_boxes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, carried, object_rows
from edgetune_runtime.records.forms import FormError

_KEYS = ("image", "prefix", "suffix")


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each object of the file."""
    return object_rows(source.path, partial(_convert, source))


def _convert(source: Source, record: Mapping[str, Any]) -> Value:
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise FormError(f"missing key {missing[0]!r}", hint=f"a record has {', '.join(_KEYS)}")
    meta = carried(record, (*_KEYS, "id"))
    value: Value = {
        "image": source.pictures.path(record["image"]),
        "question": record["prefix"],
        "answer": record["suffix"],
    }
    return value | ({"id": record["id"]} if "id" in record else {}) | ({"meta": meta} if meta else {})


FORMAT = Format(
    name="roboflow",
    title="Roboflow for vision-language models: image, prefix, suffix (JSONL)",
    sniff=lambda found: bool(found.records) and {"prefix", "suffix"} <= set(found.records[0]),
    rows=rows,
    options=TURNS_OPTIONS,
)
