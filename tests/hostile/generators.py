"""Generators of damage: values that no file should hold, JSON values that hold one, bytes that were changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1e308, -1e308, 5e-324, 10**39, 2**63, -(2**31), ""),
    *("\x1b]52;c;cHduZWQ=\x07", "\u202egnp", "a" * 5000, "../../etc/passwd", "/dev/zero", "\0", "{phrase}", " "),
    *([], {}, [[]], [None], {"": {}}, [1e308] * 4, [[0, 0, 0, 0]] * 50),
]
"""Values that have broken some program."""
SPELLED = ("NaN", "-Infinity", "1e999", "9" * 400, "9" * 5000, "[" * 3000 + "]" * 3000, r'"\ud800"', '{"a":1,"a":2}')
"""The same as JSON texts: what Python's json would read, or stumble over."""
JUNK = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
_MARK = "\x00here\x00"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value, and to itself."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another one at a place."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON text like `value` with something wrong at one place or two, or with bytes that were changed."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if path and draw(st.integers(0, 4)) == 0:
            inner = copy.deepcopy(value)
            holder = inner
            for key in path[:-1]:
                holder = holder[key]
            del holder[path[-1]]
            value = inner
        else:
            value = replaced(value, path, draw(JUNK | st.just(_MARK)))
    text = json.dumps(value, ensure_ascii=draw(st.booleans())).replace(
        json.dumps(_MARK), draw(st.sampled_from(SPELLED))
    )
    data = text.encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(data)) if draw(st.integers(0, 4)) == 0 else data


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """A file that was cut, whose bytes were changed, or into which others were put."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        kind = draw(st.sampled_from(["change", "change", "change", "cut", "insert", "drop"]))
        if kind == "change" and changed:
            changed[place] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
        elif kind == "cut":
            del changed[place:]
        elif kind == "insert":
            changed[place:place] = draw(st.binary(max_size=16))
        else:
            del changed[place : place + draw(st.integers(1, 16))]
    return bytes(changed)
