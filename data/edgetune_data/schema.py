"""The JSON Schema of the canonical JSONL, for tools that check or generate it (record.schema.json in this package)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

VERSION = 1
NAME = "record.schema.json"


@cache
def record_schema() -> dict[str, Any]:
    """Return the schema of one line, JSON Schema draft 2020-12; its `$id` ends with the version."""
    schema: dict[str, Any] = json.loads((files("edgetune_data") / NAME).read_text(encoding="utf-8"))
    return schema
