"""The one decoder of JSON that comes from outside: records, annotations, manifests, configs, results.

It is stricter than Python's, so that what it returns can be worked on and written again without surprises: nesting and
whole numbers are bounded, numbers are finite unless the caller allows others, no object has a key twice, and every text
is one that UTF-8 can hold.
"""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from edgetune_runtime.errors import InputError, excerpt

MAX_DEPTH = 100
"""Most lists and objects inside each other. What is nested deeper exhausts the stack of whoever walks through it."""
MAX_DIGITS = 40
"""Longest whole number, enough for identifiers of 128 bits; a longer one fits no float and no array."""


def decode_json(data: str | bytes, where: str = "", *, finite: bool = True) -> Any:
    """Return the value of a JSON text.

    Args:
        data: the text, or its UTF-8 bytes without a byte order mark.
        where: what the error message begins with, such as the file and the line.
        finite: refuse NaN, Infinity and numbers that round to it, which JSON does not have but Python reads.

    Raises:
        InputError: it is not JSON, or goes beyond the bounds of this module.
    """
    try:
        return _decode(data, finite)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error), hint=error.hint) from error


def read_json_value(path: Path, *, finite: bool = True) -> Any:
    """Return the value in a JSON file, which may begin with a byte order mark.

    Raises:
        InputError: the file cannot be read, or as `decode_json`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return decode_json(data.removeprefix(codecs.BOM_UTF8), str(path), finite=finite)


def read_json(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: as `read_json_value`, and when the file holds anything but an object.
    """
    value = read_json_value(path, finite=finite)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return value


def _decode(data: str | bytes, finite: bool) -> Any:
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_finite if finite else None,
            parse_constant=_refuse_constant if finite else None,
        )
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 text: {error.reason} at byte {error.start}", hint="save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in error.doc.rstrip("\n") else ""
        hint = _how_to_mend(error)
        raise InputError(f"not valid JSON: {error.msg} at {line}column {error.colno}", hint=hint) from error
    except RecursionError as error:
        raise InputError("not valid JSON: nested too deeply") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        _check_texts(value)
    return value


def _how_to_mend(error: json.JSONDecodeError) -> str | None:
    """Return what to do about a text that is no JSON, where its mistake is a common one."""
    before, after = error.doc[: error.pos].rstrip(" \t"), error.doc[error.pos :].lstrip()
    if after.startswith("'"):
        return "JSON has double quotes; Python's json.dumps writes them"
    if (before.endswith(",") and after[:1] in ("}", "]")) or "trailing comma" in error.msg:
        return "leave out the comma before the closing bracket"
    if error.msg == "Extra data" and before.endswith("\r"):
        return "end lines with a line feed, not with a carriage return alone"
    if error.doc.strip() in ("{", "["):
        return "a JSONL file has one whole object a line; name a file that holds one array of them .json"
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"not valid JSON: an object has the key {excerpt(twice)} twice")
    return found


def _whole(digits: str) -> int:
    length = len(digits.lstrip("-"))
    if length > MAX_DIGITS:
        raise InputError(f"a whole number of {length} digits ({digits[:12]}…) is too large")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise InputError(f"the number {digits[:20]} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"not valid JSON: {name} is no number of JSON")


def _check_depth(value: Any) -> None:
    """Go down level by level, not by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return
    raise InputError(f"not valid JSON: nested too deeply, over {MAX_DEPTH} levels")


def _check_texts(value: Any) -> None:
    r"""Refuse half of a surrogate pair, such as "\ud800": JSON can spell it, but it is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(f"not valid JSON: {half} is half of a surrogate pair, which is no text") from error
