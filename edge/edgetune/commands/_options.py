"""Click parameters from the dataclass of a verb's options: name, type, default, range and help are written there."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Literal

import click

from edgetune_core.options import (
    Facts,
    Options,
    StageOptions,
    checked,
    facts_of,
    flag_of,
    number,
    options_of,
    without_none,
)
from edgetune_runtime.errors import InputError


def parameters(kind: type[Options]) -> list[click.Parameter]:
    """Return the click parameters of a verb's options: arguments first, what all verbs have last."""
    made = [_parameter(item, hint) for item, hint in options_of(kind)]
    common = {item.name for item, _ in options_of(StageOptions)}
    return sorted(made, key=lambda parameter: isinstance(parameter, click.Option) + (parameter.name in common))


def _parameter(item: Field[Any], hint: Any) -> click.Parameter:
    facts, kind = facts_of(item), without_none(hint)
    required = item.default is MISSING and item.default_factory is MISSING
    several = typing.get_origin(kind) is tuple
    if facts.argument:
        count = -1 if several else 1
        return click.Argument(
            [item.name], type=Value(hint, facts, item), nargs=count, required=required, metavar=flag_of(item)
        )
    flag = flag_of(item)
    if kind is bool:
        names = f"{flag}/--no-{flag[2:]}" if item.default is True else flag
        return click.Option([names, item.name], is_flag=True, default=item.default, help=facts.help)
    several = (several and not facts.commas) or _is_mapping(kind)
    more: dict[str, Any] = {"is_flag": False, "flag_value": facts.given} if facts.given else {}
    if not required:  # to click, None is a default like any other
        more["default"] = None if _is_mapping(kind) or (several and not item.default) else item.default
    return _Option(
        [flag, item.name],
        type=Value(hint, facts, item),
        multiple=several,
        callback=_by_name if _is_mapping(kind) else None,
        required=required,
        metavar=facts.metavar,
        show_default=facts.shown is None,
        help=facts.help + (f"  [default: {facts.shown}]" if facts.shown else ""),
        **more,
    )


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _by_name(context: click.Context, option: click.Parameter, pairs: Any) -> dict[str, Any]:
    """Return NAME=VALUE pairs as a mapping."""
    found: dict[str, Any] = {}
    for name, value in pairs or ():
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", context, option)
        found[name] = value
    return found


class _Option(click.Option):
    """An option whose help ends with its range, as that of click's own numbers does."""

    type: Value

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Return what stands in brackets behind the help."""
        facts, extra = self.type.facts, super().get_help_extra(ctx)
        low = "" if facts.minimum is None else f"{facts.minimum:g}{'<' if facts.above else '<='}"
        high = "" if facts.maximum is None else f"{'<' if facts.below else '<='}{facts.maximum:g}"
        if low and not high:
            low, high = "", f"{'>' if facts.above else '>='}{facts.minimum:g}"
        return {**extra, "range": f"{low}x{high}"} if low or high else extra


class Value(click.ParamType[Any]):
    """One value of an option: text becomes what the field's type says, within its range and allowed values."""

    def __init__(self, hint: Any, facts: Facts, item: Field[Any]) -> None:
        kind = without_none(hint)
        self.commas = facts.commas
        self.pair = _is_mapping(kind)
        arguments = typing.get_args(kind)
        if self.pair:
            kind = arguments[1]
        elif typing.get_origin(kind) is tuple:
            kind = arguments[0]
        self.kind, self.facts, self.flag = kind, facts, flag_of(item)
        self.choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        self.offered = tuple(map(str, self.choices or facts.known))
        self.name = "path" if kind is Path else getattr(kind, "__name__", "value")

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the allowed values, or what kind of value it is."""
        if self.offered:
            return f"[{'|'.join(self.offered)}]"
        return {Path: "PATH", int: "INTEGER", float: "FLOAT"}.get(self.kind, "TEXT")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Offer the allowed values, of a list for the last one, or the shell's own completion of paths."""
        from click.shell_completion import CompletionItem

        if self.kind is Path:
            return [CompletionItem(incomplete, type="file")]
        before, comma, last = incomplete.rpartition(",") if self.commas else ("", "", incomplete)
        return [CompletionItem(f"{before}{comma}{one}") for one in self.offered if one.startswith(last)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value, or raise `click.BadParameter` with what is allowed."""
        try:
            if self.commas:
                words = value.split(",") if isinstance(value, str) else value
                words = [word for word in words if self.kind is not str or word.strip()]
                if isinstance(value, str) and not words:
                    raise InputError("no value given")
                values = map(self._one, words)
                return tuple(values if self.facts.repeats else dict.fromkeys(values))
            if self.pair and isinstance(value, str):
                name, equals, text = value.partition("=")
                if not (name and equals and text):
                    raise InputError(f"{value!r} must look like {self.facts.metavar or 'NAME=VALUE'}")
                return name, self._one(text)
            return self._one(value)
        except InputError as error:
            message = str(error).removeprefix(f"{self.flag}: ")
            near = f". {error.hint[0].upper()}{error.hint[1:]}" if error.hint and "did you mean" in error.hint else ""
            raise click.BadParameter(message + near, ctx=ctx, param=param) from None

    def _one(self, value: Any) -> Any:
        if isinstance(value, str):
            value = value.strip() if self.commas else value
            value = next((one for one in self.choices if str(one) == value), value)
            if self.facts.parse is not None:
                value = self.facts.parse(value)
            elif self.kind in (int, float):
                value = number(self.kind, value)
        return checked(self.flag, self.kind, self.facts, value)
