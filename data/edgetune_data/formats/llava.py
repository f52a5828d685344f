"""LLaVA's JSON: an array of {"id", "image", "conversations": [{"from": "human" | "gpt", "value": text}]}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from edgetune_data.formats import swift
from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, object_rows
from edgetune_runtime.records.forms import FormError


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each object of the file."""
    return object_rows(source.path, partial(_convert, source))


def _convert(source: Source, record: Mapping[str, Any]) -> Value:
    if "conversations" not in record:
        raise FormError("missing key 'conversations'", hint="a LLaVA record has id, image and conversations")
    return swift.convert(source, record)


FORMAT = Format(
    name="llava",
    title="LLaVA: image and conversations (JSON, JSONL)",
    sniff=lambda found: {"conversations", "image"} <= set(found.telling),
    rows=rows,
    options=TURNS_OPTIONS,
)
