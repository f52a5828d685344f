"""ms-swift's JSON: messages, images and objects, with the aliases that its automatic preprocessor accepts.

Read as that tool reads it; what it deletes, swaps, clamps or ignores without stopping is an error here (docs/data.md
lists the cases).
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from edgetune_data.formats.base import TURNS_OPTIONS, Format, Row, Source, Value, object_rows
from edgetune_data.formats.sniffing import QUERY, RESPONSE, TURNS, is_spoken
from edgetune_data.formats.swift_objects import boxes_in_pixels
from edgetune_data.formats.swift_turns import read_turns
from edgetune_runtime.errors import excerpt
from edgetune_runtime.records.forms import FormError

_IMAGES = ("images", "image")
_SYSTEM = ("system", "system_prompt")
_OTHER_TRAINING = ("videos", "video", "audios", "audio", "tools", "label", "margin", "ref_audios", "audio_codes")
_OTHER_PREFIXES = ("rejected_", "positive_", "negative_")
_PLAIN = ("objects", "id", "meta", "history")


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each object of the file."""
    return object_rows(source.path, partial(convert, source))


def convert(source: Source, record: Mapping[str, Any]) -> Value:
    """Return a record of the tool as a canonical one.

    Raises:
        FormError: it cannot be read, or only in part. ImageError: a picture cannot.
    """
    given = {key: value for key, value in record.items() if value is not None}  # columns of tables are filled with null
    spoken = bool(_pick(given, TURNS, several=False))
    known = (*TURNS, *_IMAGES, *_SYSTEM, *_PLAIN) if spoken else (*QUERY, *RESPONSE, *_IMAGES, *_SYSTEM, *_PLAIN)
    meta = _rest(given, known)
    value: Value
    answers = None if spoken else _answers(given)
    if answers and len(answers) > 1:
        value = _accepted(source, given, answers)
    else:
        turns = given[_pick(given, TURNS)] if spoken else _paired(given, answers)
        value = _dialogue(source, given, turns)
    if "id" in given:
        value["id"] = given["id"]
    if meta:
        value["meta"] = meta
    return value


def _pick(given: Mapping[str, Any], names: tuple[str, ...], *, several: bool = True) -> str:
    """Return the key that is one of some names, in any case, or "" for none; two of them are an error."""
    found = [key for key in given if key.lower() in names]
    if len(found) > 1 and several:
        raise FormError(f"{found[0]!r} and {found[1]!r} mean the same", hint="leave one of them out")
    return found[0] if found else ""


def _rest(given: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """Return what is carried along, with the keys that mean another kind of training or a slip refused."""
    meta = given.get("meta", {})
    if not isinstance(meta, dict):
        raise FormError(f"'meta' must be an object, got {meta!r}")
    rest = dict(meta)
    for key, value in given.items():
        if key.lower() in known:
            continue
        if (key in _OTHER_TRAINING or key.startswith(_OTHER_PREFIXES)) and value not in ([], ""):
            raise FormError(f"{key!r} is not supported", hint="edgetune trains on pictures, text and boxes")
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near:
            raise FormError(f"unknown key {key!r}", hint=f"did you mean {near[0]!r}?")
        if value not in ([], ""):
            rest[key] = value
    return rest


def _answers(given: Mapping[str, Any]) -> list[Any]:
    key = _pick(given, RESPONSE)
    if not key:
        raise FormError(
            f"no messages and no answer: keys {', '.join(map(repr, given)) or '(none)'}",
            hint='a record has "messages" (or "conversations"), or a "query" with its "response"',
        )
    value = given[key]
    if isinstance(value, list) and not value:
        raise FormError(f"{key!r} is empty")
    return value if isinstance(value, list) else [value]


def _query(given: Mapping[str, Any]) -> Any:
    if "instruction" in given and "input" in given:
        _pick({key: value for key, value in given.items() if key != "input"}, QUERY)
        return "\n".join(str(given[key]) for key in ("instruction", "input") if given[key])
    key = _pick(given, QUERY)
    return given[key] if key else None


def _paired(given: Mapping[str, Any], answers: list[Any] | None) -> list[Any]:
    """Return messages from query, response and history."""
    history = given.get("history", [])
    if isinstance(history, str):
        history = _literal(history, "history")
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise FormError(f"'history' must be a list of [query, response], got {history!r}")
    pairs = [*history, [_query(given), answers[0] if answers else None]]
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
        if text is not None
    ]


def _accepted(source: Source, given: Mapping[str, Any], answers: list[Any]) -> Value:
    """Return a question with several accepted answers; the tool trains on the first of them."""
    images = _images(given)
    if len(images) != 1 or given.get("history") or given.get("objects") or _pick(given, _SYSTEM):
        raise FormError(
            f"{len(answers)} answers in a list",
            hint="several accepted answers need one picture and no history, system or objects; keep one answer",
        )
    question = str(_query(given) or "").replace("<image>", "", 1).strip()
    return {"image": source.pictures.path(images[0]), "question": question, "answer": answers}


def _images(given: Mapping[str, Any]) -> list[Any]:
    key = _pick(given, _IMAGES)
    images = given[key] if key else []
    return images if isinstance(images, list) else [images]


def _dialogue(source: Source, given: Mapping[str, Any], turns: Any) -> Value:
    if isinstance(turns, str):
        turns = _literal(turns, "messages")
    system_key = _pick(given, _SYSTEM)
    said = read_turns(turns, system=given[system_key] if system_key else None, images=_images(given))
    images = [source.pictures.path(image) for image in said.images]
    if said.marks_added:
        source.notes["records whose first message got <image> marks for pictures that had none"] += 1
    value: Value = {"messages": said.messages, "images": images}
    if given.get("objects"):
        texts = [message["content"] for message in said.messages]
        value["objects"] = boxes_in_pixels(given["objects"], texts, images, source.options.orientation)
    return value


def _literal(text: str, key: str) -> Any:
    """Return the value of a column that holds a Python or JSON literal as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise FormError(f"{key!r} is a text that is no list: {excerpt(text, 60)}") from error


FORMAT = Format(
    name="swift",
    title="ms-swift: messages, images, objects; query and response (JSON, JSONL)",
    sniff=lambda found: is_spoken(found.telling),
    rows=rows,
    options=TURNS_OPTIONS,
)
