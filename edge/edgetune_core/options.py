"""What a stage can be told, written once: a dataclass whose fields hold default, allowed values, range and help.

The Python API takes these fields as keyword arguments and checks them; the command line makes its options of them
(`edgetune.commands._options`). A field's type is a `Path`, `str`, `int`, `float` or `bool`, a `Literal` of allowed
values, `X | None`, `tuple[X, ...]` or `Mapping[str, X]`.

    @dataclass(frozen=True, kw_only=True)
    class CropOptions(StageOptions):
        data: Path = option(help="Records to crop.", argument=True)
        output: Path = option(help="Folder to write the crops to.")
        margin: float = option(0.5, help="Margin around an object, in its sizes.", minimum=0)

    @takes(CropOptions)
    def crop(options: CropOptions) -> StageResult:
        ...

    crop(data="data.jsonl", output="cropped", margin=0.25)
"""

from __future__ import annotations

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

from edgetune_runtime.errors import InputError

P = ParamSpec("P")
AnyOptions = TypeVar("AnyOptions", bound="Options")
R = TypeVar("R")

_SECTION = re.compile(r"\n\n(?:Args|Returns|Raises):\n")


@dataclass(frozen=True)
class Facts:
    """What is known of an option beside its name, type and default.

    Attributes:
        help: a sentence for people.
        flag: its name on the command line; None is the field's, with dashes.
        metavar: what stands for its value in the help text.
        known: values that the help text and the shell's completion name, where a package may add others.
        minimum: smallest number; `above` says that the number itself is excluded.
        maximum: largest number.
        above: the minimum is excluded.
        below: the maximum is excluded.
        argument: it stands on the command line by its place and without a name.
        commas: several values are written in one word, with commas between them; equal ones count once.
        repeats: equal ones count as often as they stand there.
        shown: what the help text says of the default in place of its value.
        given: the value of a flag that may stand without one, as in `--fix` beside `--fix NAME`.
        parse: reads a value from text where people write it in another way than Python does, such as 400k.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    known: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    below: bool = False
    argument: bool = False
    commas: bool = False
    repeats: bool = False
    shown: str | None = None
    given: str | None = None
    parse: Callable[[str], Any] | None = None


def option(default: Any = MISSING, *, help: str, **facts: Any) -> Any:
    """Return a dataclass field that is an option; without a default it has to be given. `facts` are of `Facts`."""
    metadata = {"option": Facts(help, **facts)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options: texts become paths, and every value is checked when the options are made.

    Raises:
        InputError: a value is not one of the allowed ones or out of its range.
    """

    def __post_init__(self) -> None:
        for item, kind in options_of(type(self)):
            value = getattr(self, item.name)
            object.__setattr__(self, item.name, checked(flag_of(item), kind, facts_of(item), value))

    def narrow(self, kind: type[AnyOptions]) -> AnyOptions:
        """Return those fields that `kind`, a base of this class, has."""
        return kind(**{item.name: getattr(self, item.name) for item in fields(kind)})


@dataclass(frozen=True, kw_only=True)
class StageOptions(Options):
    """What every verb that writes a folder takes.

    Attributes:
        force: build even when nothing has changed.
        dry_run: write nothing; the result says what would be done.
    """

    force: bool = option(False, help="Build again even when nothing has changed.")
    dry_run: bool = option(False, help="Say what would be done and write nothing.")


def takes(options: Callable[P, AnyOptions]) -> Callable[[Callable[[AnyOptions], R]], Callable[P, R]]:
    """Make a function of options one of keyword arguments, with their names, types and defaults, and their help below.

    Args:
        options: the dataclass; its values are checked before the function runs.
    """

    def decorate(function: Callable[[AnyOptions], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(options(*args, **kwargs))

        kind = typing.cast("type[Options]", options)
        lines = [f"    {item.name}: {facts_of(item).help}" for item, _ in options_of(kind)]
        whole, told = inspect.getdoc(function) or "", description(function)
        call.__doc__ = "\n".join([told, "", "Args:", *lines]) + whole.removeprefix(told)
        returned = inspect.signature(function).return_annotation
        call.__signature__ = inspect.signature(options).replace(return_annotation=returned)  # type: ignore[attr-defined]
        call.options = kind  # type: ignore[attr-defined]
        return call

    return decorate


def options_taken(function: Callable[..., Any]) -> type[Options]:
    """Return the options of a function that `takes` made."""
    kind: type[Options] = function.options  # type: ignore[attr-defined]
    return kind


def description(function: Callable[..., Any]) -> str:
    """Return the paragraphs of a docstring before its sections."""
    return _SECTION.split(inspect.getdoc(function) or "")[0]


def options_of(kind: type[Options]) -> Iterator[tuple[Field[Any], Any]]:
    """Yield the fields that are options, each with its resolved type."""
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        if "option" in item.metadata:
            yield item, hints[item.name]


def facts_of(item: Field[Any]) -> Facts:
    """Return what is known of an option."""
    facts: Facts = item.metadata["option"]
    return facts


def flag_of(item: Field[Any]) -> str:
    """Return an option's name on the command line, such as "--batch-size" or, by its place, "DATA"."""
    facts = facts_of(item)
    if facts.argument:
        return facts.metavar or item.name.upper()
    return facts.flag or "--" + item.name.replace("_", "-")


def without_none(kind: Any) -> Any:
    """Return X of `X | None`, and any other type as it is."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        (kind,) = [part for part in typing.get_args(kind) if part is not type(None)]
    return kind


def words_of(kind: type[Options], values: Mapping[str, Any]) -> list[str]:
    """Return options as they are typed on the command line, those that stand by their place first.

    Args:
        kind: the options' dataclass.
        values: by the names of its fields; those that are left out keep their defaults.
    """
    made = kind(**values)
    placed, named = [], []
    for item, hint in options_of(kind):
        if item.name in values:
            facts, flag, value = facts_of(item), flag_of(item), getattr(made, item.name)
            if without_none(hint) is bool:
                named += [flag if value else f"--no-{flag[2:]}"] if value != item.default else []
                continue
            texts = _texts(facts, value)
            placed += texts if facts.argument else []
            named += [] if facts.argument else [word for text in texts for word in (flag, text)]
    return placed + named


def _texts(facts: Facts, value: Any) -> list[str]:
    """Return the words of a value: several for an option that is repeated, none where it is not given."""
    if isinstance(value, Mapping):
        return [f"{name}={one}" for name, one in value.items()]
    if isinstance(value, tuple):
        return [",".join(map(str, value))] if facts.commas and value else list(map(str, value))
    return [] if value is None else [str(value)]


def checked(flag: str, kind: Any, facts: Facts, value: Any) -> Any:
    """Return an option's value, as its type wants it.

    Args:
        flag: the option's name, for the message.
        kind: its type.
        facts: what else is known of it.
        value: what was given.

    Raises:
        InputError: the value is of another kind, not an allowed one, or out of range.
    """
    inner = without_none(kind)
    if value is None and inner is not kind:
        return None
    origin, parts = typing.get_origin(inner), typing.get_args(inner)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise InputError(f"{flag}: takes several values, not {value!r}")
        return tuple(checked(flag, parts[0], facts, one) for one in value)
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"{flag}: takes values by name, not {value!r}")
        return {str(name): checked(f"{flag} {name}", parts[1], facts, one) for name, one in value.items()}
    if origin is Literal:
        if value not in parts or type(value) not in map(type, parts):
            near = get_close_matches(str(value), map(str, parts), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(map(str, parts))}"
            raise InputError(f"{flag}: {value!r} is not one of {', '.join(map(str, parts))}", hint=hint)
        return value
    if inner is Path:
        if not isinstance(value, str | os.PathLike):
            raise InputError(f"{flag}: takes a path, not {value!r}")
        return Path(value)
    if inner is float and type(value) is int:
        value = float(value)
    if inner in (int, float, str, bool) and type(value) is not inner:
        raise InputError(f"{flag}: takes a {_NAMES[inner]}, not {value!r}")
    if inner in (int, float):
        _check_range(flag, facts, value)
    return value


def number(kind: type[int] | type[float], text: str) -> float:
    """Return a text as a number.

    Raises:
        InputError: it is none.
    """
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{text!r} is not a {_NAMES[kind]}") from None


_NAMES = {int: "whole number", float: "number", str: "text", bool: "truth value"}


def _check_range(flag: str, facts: Facts, value: float) -> None:
    low, high = facts.minimum, facts.maximum
    if not math.isfinite(value):
        raise InputError(f"{flag}: {value} is not a finite number")
    if low is not None and (value < low or (facts.above and value == low)):
        raise InputError(f"{flag}: {value} must be {'above' if facts.above else 'at least'} {low:g}")
    if high is not None and (value > high or (facts.below and value == high)):
        raise InputError(f"{flag}: {value} must be {'below' if facts.below else 'at most'} {high:g}")
