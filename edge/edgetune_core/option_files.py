"""Options from files: TOML, or YAML where the name ends so."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgetune_core.options import Options, checked, facts_of, flag_of, number, options_of, without_none
from edgetune_runtime.errors import InputError


def read_values(path: Path) -> dict[str, object]:
    """Return the values of a file by their names.

    Raises:
        InputError: the file is not TOML or YAML, or does not hold values by name.
    """
    language = "YAML" if path.suffix in (".yaml", ".yml") else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        values = _yaml(text) if language == "YAML" else tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path}: not valid {language}: nested too deeply") from None
    except ValueError as error:  # broken syntax, bytes that are not UTF-8, a whole number of thousands of digits
        raise InputError(f"{path}: not valid {language}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: must hold options by name")
    return values


def read_options(path: Path, kind: type[Options], apart: Mapping[str, str]) -> dict[str, Any]:
    """Return the options in a file, checked, by the names of their fields.

    A key is an option's name on the command line, with dashes or underscores.

    Args:
        path: the file.
        kind: whose options they are.
        apart: fields that the file may not hold -> why not.

    Raises:
        InputError: no such option, one that may not stand there, or a value that it does not take.
    """
    known = {flag_of(item).lstrip("-"): (item, hint) for item, hint in options_of(kind) if not facts_of(item).argument}
    found: dict[str, Any] = {}
    for key, value in read_values(path).items():
        name = key.replace("_", "-")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise InputError(f"{path}: unknown key {key!r}", hint=hint)
        item, type_ = known[name]
        if item.name in apart:
            raise InputError(f"{path}: key {key!r} cannot stand here: {apart[item.name]}")
        try:
            given = _plain(type_, facts_of(item).commas, value)
            found[item.name] = checked(f"key {key!r}", type_, facts_of(item), given)
        except InputError as error:
            where = "" if str(error).startswith("key ") else f"key {key!r}: "
            raise InputError(f"{path}: {where}{error}", hint=error.hint) from None
    return found


def _plain(kind: Any, commas: bool, value: object) -> object:
    """Return a file's value as Python would give it: texts with commas as several, NAME=VALUE texts as a mapping.

    YAML 1.1 takes `1e-4` for a text: where a number is due, a text is read as one.
    """
    inner = without_none(kind)
    origin = typing.get_origin(inner)
    if inner in (int, float) and isinstance(value, str):
        return number(inner, value)
    if origin is tuple and commas and isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, list):
        pairs = [text.partition("=") for text in value if isinstance(text, str) and "=" in text]
        if len(pairs) == len(value):
            return {name: text for name, _, text in pairs}
    return value


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None
