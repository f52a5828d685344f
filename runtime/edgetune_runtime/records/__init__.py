"""Data files: records of pictures with phrases and boxes, questions and answers, or whole conversations."""

from __future__ import annotations

from edgetune_runtime.records.read import (
    AnyRecord,
    Record,
    decode_line,
    place_of,
    read_entries,
    read_records,
    record_of,
    scored,
)
from edgetune_runtime.records.shard import Shard

__all__ = [
    "AnyRecord",
    "Record",
    "Shard",
    "decode_line",
    "place_of",
    "read_entries",
    "read_records",
    "record_of",
    "scored",
]
