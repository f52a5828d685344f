"""Option values from files, held to the same rules as the command line: `--config FILE`, and the stages of `train`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from edgetune_runtime.errors import InputError


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Click callback of `--config`: make the file's values the defaults of the verb's options.

    A key is an option's long name, with dashes or underscores. A value goes through the option's own parser as if it
    had been typed, so `rank = 8.5` is refused where 8 is expected.

    Raises:
        InputError: broken TOML, an unknown key, or a value that the option does not take.
    """
    if path is None:
        return
    options = {_key(option): option for option in ctx.command.params if isinstance(option, click.Option)}
    options.pop(_key(param), None)
    ctx.default_map = {
        str(option.name): _typed(path, key, value, option, ctx) for key, value, option in _known(path, options)
    }


def read_options(ctx: click.Context, path: Path, apart: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a verb's options in a file, parsed, by the names of the verb's arguments.

    Args:
        ctx: of the verb.
        path: TOML, or YAML where the name ends so.
        apart: options that the file may not hold -> why not.

    Raises:
        InputError: as `load_config`, and a key of `apart`.
    """
    options = {_key(option): option for option in ctx.command.params if isinstance(option, click.Option)}
    found = {}
    for key, value, option in _known(path, options):
        if _key(option) in apart:
            raise InputError(f"{path}: key {key!r} cannot stand here: {apart[_key(option)]}")
        found[str(option.name)] = option.type_cast_value(ctx, _typed(path, key, value, option, ctx))
    return found


def _known(path: Path, options: Mapping[str, click.Option]) -> list[tuple[str, object, click.Option]]:
    """Return a file's keys and values with the options that they mean."""
    found = []
    for key, value in _values(path).items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            near = get_close_matches(key, options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(options))}"
            raise InputError(f"{path}: unknown key {key!r}", hint=hint)
        found.append((key, value, option))
    return found


def _values(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix not in (".yaml", ".yml"):
            return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: must hold options by name")
    return values


def _key(option: click.Parameter) -> str:
    return max(option.opts, key=len).lstrip("-")


def _typed(path: Path, key: str, value: object, option: click.Option, ctx: click.Context) -> object:
    """Return the value as command line text (a list of it for an option with several values)."""
    several = option.multiple or option.nargs != 1
    if several != isinstance(value, list) or isinstance(value, dict):
        raise InputError(f"{path}: key {key!r} takes {'a list' if several else 'one value'}, not {value!r}")
    text = [_text(item) for item in value] if isinstance(value, list) else _text(value)
    try:
        option.type_cast_value(ctx, text)
    except click.BadParameter as error:
        raise InputError(f"{path}: key {key!r}: {error.message}") from None
    return text


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
