"""Checks that the readers of records share: keys, texts and numbers of a decoded JSON object."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_runtime.errors import InputError, excerpt, not_utf8

MAX_BOXES = 10_000
"""Boxes and points of one record: far more than fit in an answer, and few enough to be compared with each other."""


class FormError(InputError):
    """A record does not have one of the known forms; the caller adds file and line."""


def check_keys(record: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> None:
    """Refuse keys that the form does not have, and missing ones.

    Raises:
        FormError: with the nearest known key.
    """
    known = (*required, *optional)
    for key in record:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise FormError(
                f"unknown key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known keys of this form: {', '.join(known)}",
            )
    missing = [key for key in required if key not in record]
    if missing:
        raise FormError(f"missing key {missing[0]!r}", hint=f"this form needs {', '.join(required)}")


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Return a text that is not empty and that UTF-8 can hold.

    Raises:
        FormError: it is anything else.
    """
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise FormError(f"{key!r} must be a text that is not empty, got {excerpt(value)}")
    if broken := not_utf8(value):
        raise FormError(f"{key!r} holds {broken}")
    return value


def box_of(value: Any) -> list[float]:
    """Return four finite numbers.

    Raises:
        FormError: it is anything else.
    """
    if not _is_numbers(value) or len(value) != 4:
        raise FormError(f"a bbox is four numbers [x1, y1, x2, y2], got {excerpt(value)}")
    return [float(number) for number in value]


def check_count(boxes: Sequence[Any]) -> None:
    """Refuse more boxes than a record may have.

    Raises:
        FormError: there are over `MAX_BOXES`.
    """
    if len(boxes) > MAX_BOXES:
        raise FormError(f"{len(boxes)} boxes, and a record has at most {MAX_BOXES}", hint="divide it into several")


def numbers_of(value: Any) -> list[float]:
    """Return the four numbers of a box or the two of a point.

    Raises:
        FormError: it is anything else.
    """
    if not _is_numbers(value) or len(value) not in (2, 4):
        raise FormError(f"a place is four numbers [x1, y1, x2, y2] or a point [x, y], got {excerpt(value)}")
    return [float(number) for number in value]


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    plain = all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    return plain and all(abs(number) <= sys.float_info.max for number in value)  # also of a whole number
