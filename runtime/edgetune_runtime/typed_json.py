"""Dataclasses as JSON: read and checked in one place, written, and described by a JSON Schema.

The type hints of a dataclass say what may stand in the file; `Annotated[float, Range(0, 1)]` adds limits. A field with
a default may be missing, and an `OrAbsent` one is not written while it is None. A union of dataclasses is told apart
by their `Literal` field of one value. Keys that no field has are left alone, so a later version may add some.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Score:
    ...     name: str
    ...     share: Share
    >>> decode(Score, {"name": "int4", "share": 0.5})
    Score(name='int4', share=0.5)
    >>> decode(Score, {"name": "int4", "share": 2})
    Traceback (most recent call last):
    edgetune_runtime.errors.InputError: share: must be a number from 0 to 1, not 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

from edgetune_runtime.errors import InputError, excerpt

T = TypeVar("T")
_SHOWN = 40  # characters of a wrong value that a message repeats


class Range(NamedTuple):
    """Limits of a number, both allowed; None where there is none."""

    low: float | None = None
    high: float | None = None


Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""
Change = Annotated[float, Range(-1, 1)]
"""A difference of two shares."""
Seconds = Annotated[float, Range(0, 1e9)]
Bytes = Annotated[int, Range(0, 1e18)]
Count = Annotated[int, Range(0, 1e12)]
Number = Annotated[int, Range(1, 1e12)]
"""A count of at least one."""
_ABSENT = "absent"
OrAbsent = Annotated[Optional[T], _ABSENT]  # noqa: UP045  # `|` takes no type variable in Python 3.10
"""A value, or None, which is then not written."""


def decode(kind: type[T], value: object) -> T:
    """Make a dataclass, or another type of its fields, of plain JSON values.

    Raises:
        InputError: a value is missing or is not what its type says; the message names its place.
    """
    made: T = _decode(kind, value, "")
    return made


def encode(value: Any) -> Any:
    """The plain JSON values of a dataclass, or of what its fields hold."""
    if _is_dataclass(value):
        kind: Any = type(value)
        hints = _hints(kind)
        held = {each.name: getattr(value, each.name) for each in fields(value)}
        return {name: encode(item) for name, item in held.items() if not (item is None and _may_be_absent(hints[name]))}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def json_schema(kind: Any, title: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `decode` accepts for a dataclass."""
    definitions: dict[str, Any] = {}
    top = _describe(kind, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **top, "$defs": definitions}


def _decode(kind: Any, value: Any, where: str) -> Any:
    kind, limits = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if _is_dataclass(kind):
        return _object(kind, value, where)
    if origin in (Union, UnionType):
        return _one_of(parts, value, where)
    if origin is Literal:
        if type(value) is not type(parts[0]) or value not in parts:
            raise _wrong(where, " or ".join(map(repr, parts)), value)
        return value
    if origin is tuple:
        return _items(parts, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {key: _decode(parts[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if (kind is float and type(value) in (int, float)) or (kind is int and type(value) is int):
        return _number(kind, value, limits, where)
    if kind is bool and type(value) is bool:
        return value
    if kind is str and type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: holds half of a surrogate pair, which no text may") from None
        return value
    raise _wrong(where, {bool: "true or false", str: "a text"}.get(kind) or _expected(kind, limits), value)


def _object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints = _hints(kind)
    made = {}
    for each in _read(kind):
        place = f"{where}.{each.name}" if where else each.name
        if each.name in value:
            made[each.name] = _decode(hints[each.name], value[each.name], place)
        elif not _optional(each):
            raise InputError(f"{place}: is missing")
    try:
        return kind(**made)
    except InputError as error:  # what __post_init__ says of several fields together
        raise InputError(f"{where}: {error}" if where else str(error), hint=error.hint) from None


def _one_of(parts: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in parts:
        return None
    variants = [part for part in parts if part is not NoneType]
    if len(variants) == 1:
        return _decode(variants[0], value, where)
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    tag = _tag(variants[0])
    known = {_literal(variant, tag): variant for variant in variants}
    chosen = value.get(tag)
    if not isinstance(chosen, str) or chosen not in known:
        raise _wrong(f"{where}.{tag}" if where else tag, " or ".join(map(repr, known)), chosen)
    return _decode(known[chosen], value, where)


def _items(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    if parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            raise InputError(f"{where}: must hold {len(parts)} values, not {len(value)}")
        return tuple(
            _decode(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(zip(parts, value, strict=True))
        )
    return tuple(_decode(parts[0], item, f"{where}[{_label(item, i)}]") for i, item in enumerate(value))


def _label(item: Any, number: int) -> str:
    """How a message calls an item of a list: by its name, where it has one."""
    name = item.get("name") if isinstance(item, dict) else None
    return repr(name) if isinstance(name, str) and len(name) <= _SHOWN else str(number)


def _number(kind: Any, value: float, limits: Range, where: str) -> Any:
    try:
        made = kind(value)
        finite = math.isfinite(made)
    except OverflowError:
        finite = False
    low, high = limits
    if not finite or (low is not None and made < low) or (high is not None and made > high):
        raise _wrong(where, _expected(kind, limits), value)
    return made


def _expected(kind: Any, limits: Range) -> str:
    name = {int: "a whole number", float: "a number"}.get(kind, "a value")
    low, high = limits
    if low is not None and high is not None:
        return f"{name} from {low:g} to {high:g}"
    return name if low is None else f"{name} of at least {low:g}"


def _wrong(where: str, expected: str, value: object) -> InputError:
    words = {None: "null", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else excerpt(value, _SHOWN)
    return InputError(f"{where + ': ' if where else ''}must be {expected}, not {shown}")


def _may_be_absent(kind: Any) -> bool:
    return get_origin(kind) is Annotated and _ABSENT in get_args(kind)[1:]


def _bare(kind: Any) -> tuple[Any, Range]:
    """A type without its annotation, and the limits that it had."""
    if get_origin(kind) is not Annotated:
        return kind, Range()
    bare, *notes = get_args(kind)
    return bare, next((note for note in notes if isinstance(note, Range)), Range())


def _is_dataclass(kind: Any) -> bool:
    return is_dataclass(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _read(kind: Any) -> list[Field[Any]]:
    return [each for each in fields(kind) if each.init]


def _optional(each: Field[Any]) -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING


def _tag(variant: Any) -> str:
    """The field that tells the members of a union apart: the one that has one value."""
    return next(name for name, hint in _hints(variant).items() if _is_tag(hint))


def _is_tag(hint: Any) -> bool:
    return get_origin(hint) is Literal and len(get_args(hint)) == 1


def _literal(variant: Any, tag: str) -> Any:
    return get_args(_hints(variant)[tag])[0]


def _describe(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kind, limits = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if _is_dataclass(kind):
        name = str(kind.__name__)
        if name not in definitions:
            definitions[name] = {}  # the place, before what it refers to
            definitions[name] = {
                "type": "object",
                "description": (kind.__doc__ or "").split("\n", 1)[0],
                "required": [each.name for each in _read(kind) if not _needless(kind, each)],
                "properties": {each.name: _describe(_hints(kind)[each.name], definitions) for each in _read(kind)},
            }
        return {"$ref": f"#/$defs/{name}"}
    if origin in (Union, UnionType):
        return {"anyOf": [_describe(part, definitions) for part in parts]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple and parts[-1] is Ellipsis:
        return {"type": "array", "items": _describe(parts[0], definitions)}
    if origin is tuple:
        items = [_describe(part, definitions) for part in parts]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _describe(parts[1], definitions)}
    names = {float: "number", int: "integer", bool: "boolean", str: "string", NoneType: "null"}
    bounds = {"minimum": limits.low, "maximum": limits.high}
    return {"type": names[kind], **{key: bound for key, bound in bounds.items() if bound is not None}}


def _needless(kind: Any, each: Field[Any]) -> bool:
    """Whether a field may be missing: it has a default and does not tell a union's members apart."""
    return _optional(each) and not _is_tag(_hints(kind)[each.name])
