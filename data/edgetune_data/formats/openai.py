"""OpenAI's chat format for fine-tuning: messages whose content is a text or a list of text and image_url parts.

Format: platform.openai.com/docs/guides/vision-fine-tuning. Pictures are data URIs or addresses (or paths, as others
write it). Conversations are read as ms-swift's are, with this format's own words for roles and for what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from edgetune_data.formats import swift
from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, object_rows
from edgetune_data.formats.sniffing import Sniffed
from edgetune_runtime.records.forms import FormError

_KNOWN = frozenset(("messages", "id", "metadata"))
_TOOLS = ("tools", "functions", "response_format", "parallel_tool_calls")
_ROLES = {"developer": "system"}
_CALLS = ("tool_calls", "function_call", "audio")


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each object of the file."""
    return object_rows(source.path, partial(_convert, source))


def _convert(source: Source, record: Mapping[str, Any]) -> Value:
    turns = record.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise FormError("'messages' must be a list of objects, not empty", hint="a message has role and content")
    for key in _TOOLS:
        if record.get(key):
            raise FormError(f"{key!r} is not supported", hint="edgetune trains on pictures, text and boxes")
    rest = {key: value for key, value in record.items() if key not in (*_TOOLS, "metadata")}
    meta = {"meta": record["metadata"]} if record.get("metadata") else {}
    return swift.convert(source, {**rest, "messages": [_message(turn) for turn in turns], **meta})


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    for key in _CALLS:
        if turn.get(key):
            raise FormError(
                f"{key!r} in a message is not supported", hint="edgetune trains on pictures, text and boxes"
            )
    if turn.get("refusal") and not turn.get("content"):
        raise FormError("a message is a refusal without content", hint="write the words of the refusal as its content")
    rest = {key: value for key, value in turn.items() if key not in (*_CALLS, "refusal", "name", "weight", "role")}
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise FormError(f"'weight' {weight!r} is not supported", hint="0 leaves a message out, 1 learns it")
    learned = {} if weight is None or turn.get("role") != "assistant" else {"loss": bool(weight)}
    return {"role": _ROLES.get(str(turn.get("role")), turn.get("role")), **rest, **learned}


def _sniff(found: Sniffed) -> bool:
    """Whether messages hold pictures as image_url parts, or say how much they weigh, and nothing is ms-swift's."""
    record = found.telling
    turns = record.get("messages")
    if not isinstance(turns, list) or not set(record) <= _KNOWN | set(_TOOLS):
        return False
    turns = [turn for turn in turns if isinstance(turn, dict)]
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    shown = any(isinstance(part, dict) and part.get("type") == "image_url" for part in parts)
    return shown or any("weight" in turn or turn.get("role") == "developer" for turn in turns)


FORMAT = Format(
    name="openai",
    title="OpenAI chat: messages with image_url parts (JSONL)",
    sniff=_sniff,
    rows=rows,
    options=TURNS_OPTIONS,
)
