"""`--config FILE`: option values from a file, held to the same rules as the command line."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import click

from edgetune_core.option_files import read_values
from edgetune_runtime.errors import InputError, excerpt


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


def _known(path: Path, options: Mapping[str, click.Option]) -> list[tuple[str, object, click.Option]]:
    """Return a file's keys and values with the options that they mean."""
    found = []
    for key, value in read_values(path).items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            near = get_close_matches(key, options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(options))}"
            raise InputError(f"{path}: unknown key {key!r}", hint=hint)
        found.append((key, value, option))
    return found


def _key(option: click.Parameter) -> str:
    return max(option.opts, key=len).lstrip("-")


def _typed(path: Path, key: str, value: object, option: click.Option, ctx: click.Context) -> object:
    """Return the value as command line text (a list of it for an option with several values)."""
    several = option.multiple or option.nargs != 1
    if several != isinstance(value, list) or isinstance(value, dict):
        raise InputError(f"{path}: key {key!r} takes {'a list' if several else 'one value'}, not {excerpt(value)}")
    items = value if isinstance(value, list) else [value]
    strange = [item for item in items if isinstance(item, list | dict) or (isinstance(item, int) and abs(item) >> 128)]
    if strange:
        raise InputError(f"{path}: key {key!r} cannot take {excerpt(strange[0])}")
    text = [_text(item) for item in items] if isinstance(value, list) else _text(value)
    try:
        option.type_cast_value(ctx, text)
    except click.BadParameter as error:
        raise InputError(f"{path}: key {key!r}: {error.message}") from None
    except ValueError as error:  # a path with a null character
        raise InputError(f"{path}: key {key!r}: {error}") from None
    return text


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
