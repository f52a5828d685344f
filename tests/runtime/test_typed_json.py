"""Dataclasses read from JSON: what is refused, where a message says it stands, and that writing brings it back."""

from __future__ import annotations

import doctest
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from edgetune_runtime import typed_json
from edgetune_runtime.errors import InputError
from edgetune_runtime.typed_json import Count, OrAbsent, Share, decode, encode


@dataclass(frozen=True)
class Cup:
    full: Share
    kind: Literal["cup"] = "cup"


@dataclass(frozen=True)
class Owl:
    feathers: Count
    name: str
    kind: Literal["owl"] = "owl"


@dataclass(frozen=True)
class Shelf:
    things: tuple[Cup | Owl, ...]
    place: tuple[float, float]
    notes: dict[str, str]
    open: bool
    owner: str | None
    colour: OrAbsent[str] = None


SHELF: dict[str, Any] = {
    "things": [{"kind": "owl", "feathers": 3, "name": "Ada"}, {"kind": "cup", "full": 1}],
    "place": [1.5, -2],
    "notes": {"a": "b"},
    "open": False,
    "owner": None,
}


def test_the_example_runs() -> None:
    assert doctest.testmod(typed_json).failed == 0


def test_what_is_written_is_what_was_read() -> None:
    shelf = decode(Shelf, SHELF)
    assert shelf == Shelf((Owl(3, "Ada"), Cup(1.0)), (1.5, -2.0), {"a": "b"}, False, None)
    assert encode(shelf) == SHELF
    assert encode(decode(Shelf, SHELF | {"colour": "red"})) == SHELF | {"colour": "red"}
    assert decode(Shelf, SHELF | {"later": 1}) == shelf  # what a later version may add


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"things": None}, "things: must be a list, not null"),
        ({"things": [{"full": 1}]}, "things[0].kind: must be 'cup' or 'owl', not null"),
        ({"things": [3]}, "things[0]: must be an object, not 3"),
        ({"things": [{"kind": "cup", "full": 1.01}]}, "things[0].full: must be a number from 0 to 1, not 1.01"),
        ({"things": [{"kind": "cup", "full": True}]}, "things[0].full: must be a number from 0 to 1, not true"),
        ({"things": [{"kind": "owl", "name": "Ada"}]}, "things['Ada'].feathers: is missing"),
        ({"things": [{"kind": "owl", "name": "Ada", "feathers": 2.0}]}, "things['Ada'].feathers: must be a whole"),
        ({"place": [1, 2, 3]}, "place: must hold 2 values, not 3"),
        ({"place": [1, 10**400]}, "place[1]: must be a number, not <a whole number of 1329 bits>"),
        ({"notes": {"a": 1}}, "notes['a']: must be a text, not 1"),
        ({"notes": []}, "notes: must be an object, not []"),
        ({"open": 0}, "open: must be true or false, not 0"),
        ({"owner": 1}, "owner: must be a text, not 1"),
        ({"owner": "\ud800"}, "owner: holds half of a surrogate pair"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(Shelf, SHELF | change)
    assert str(caught.value).startswith(message)
