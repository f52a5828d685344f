"""Options written once: what Python is refused and what the command line makes of the same fields."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from edgetune.commands._options import parameters
from edgetune_core.options import StageOptions, option, takes, words_of
from edgetune_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """One field of each kind."""

    data: Path = option(help="Records.", argument=True)
    margin: float = option(0.5, help="Margin in sizes.", minimum=0)
    rate: float | None = option(None, help="A share.", minimum=0, above=True, maximum=1, below=True)
    count: int = option(8, help="How many.", minimum=1)
    kind: Literal["png", "jpeg"] = option("png", help="Of the crops.", flag="--format")
    bits: Literal[16, 8, 4] = option(16, help="Of the head.")
    sizes: tuple[Literal[32, 64, 128], ...] = option((128,), help="Sizes.", commas=True, shown="128")
    names: tuple[str, ...] = option((), help="Names; repeatable.", flag="--name")
    weights: Mapping[str, float] = option({}, help="Weights.", metavar="NAME=WEIGHT")
    quick: bool = option(False, help="Be quick.")
    loud: bool = option(True, help="Be loud.")


@takes(Options)
def crop(options: Options) -> Options:
    """Crop something."""
    return options


def parse(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, the parsed values and what was printed."""
    found: dict[str, Any] = {}
    command = click.Command("crop", callback=lambda **values: found.update(values), params=parameters(Options))
    result = CliRunner().invoke(command, list(arguments))
    return result.exit_code, found, result.output


def test_both_ways_give_the_same_options() -> None:
    words = "a.jsonl --margin 1 --rate 0.25 --format jpeg --bits 4 --sizes 64,32 --name x --name y --weights a=2"
    code, values, said = parse(*words.split(), "--quick", "--no-loud")
    assert code == 0, said
    called = crop(
        data=Path("a.jsonl"),
        margin=1.0,
        rate=0.25,
        kind="jpeg",
        bits=4,
        sizes=(64, 32),
        names=("x", "y"),
        weights={"a": 2.0},
        quick=True,
        loud=False,
    )
    assert Options(**values) == called


def test_defaults_are_those_of_the_fields() -> None:
    assert Options(**parse("a.jsonl")[1]) == crop(data=Path("a.jsonl"), weights={})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margin": -0.1}, "--margin: -0.1 must be at least 0"),
        ({"margin": float("nan")}, "--margin: nan is not a finite number"),
        ({"rate": 0.0}, "--rate: 0.0 must be above 0"),
        ({"rate": 1.0}, "--rate: 1.0 must be below 1"),
        ({"count": 2.5}, "--count: takes a whole number, not 2.5"),
        ({"count": True}, "--count: takes a whole number, not True"),
        ({"kind": "pngg"}, "--format: 'pngg' is not one of png, jpeg"),
        ({"bits": 5}, "--bits: 5 is not one of 16, 8, 4"),
        ({"sizes": (33,)}, "--sizes: 33 is not one of 32, 64, 128"),
        ({"names": "x"}, "--name: takes several values, not 'x'"),
        ({"weights": {"a": "b"}}, "--weights a: takes a number, not 'b'"),
        ({"quick": "yes"}, "--quick: takes a truth value, not 'yes'"),
        ({"data": 5}, "DATA: takes a path, not 5"),
    ],
)
def test_python_is_refused_what_the_command_line_is(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        crop(**({"data": Path("a.jsonl")} | values))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--margin -0.1", "-0.1 must be at least 0"),
        ("--margin nan", "nan is not a finite number"),
        ("--count 2.5", "'2.5' is not a whole number"),
        ("--format pngg", "'pngg' is not one of png, jpeg. Did you mean 'png'?"),
        ("--bits 5", "'5' is not one of 16, 8, 4"),
        ("--sizes 64,33", "'33' is not one of 32, 64, 128"),
        ("--weights a", "'a' must look like NAME=WEIGHT"),
        ("--weights a=b", "'b' is not a number"),
        ("--weights a=1 --weights a=2", "'a' is given twice"),
    ],
)
def test_the_command_line_says_what_is_allowed(words: str, message: str) -> None:
    code, _, said = parse("a.jsonl", *words.split())
    assert code == 2 and message in said, said


def test_help_is_written_once() -> None:
    said = parse("--help")[2]
    assert inspect.signature(crop).parameters["margin"].default == 0.5
    for text in ("Margin in sizes.", "Names; repeatable.", "Be loud."):
        assert text in said and text in str(crop.__doc__)


def test_options_are_spelled_as_they_are_typed() -> None:
    values: dict[str, Any] = {
        "data": "a.jsonl",
        "margin": 1.0,
        "rate": None,
        "kind": "jpeg",
        "sizes": (64, 32),
        "names": ("x y", "--z"),
        "weights": {"a": 2.0, "b": 0.5},
        "quick": True,
        "loud": False,
        "dry_run": False,
    }
    words = words_of(Options, values)
    assert words[0] == "a.jsonl" and "--rate" not in words and "--dry-run" not in words
    code, typed, said = parse(*words)
    assert code == 0, said
    assert Options(**typed) == Options(**values)


def test_a_missing_option_is_named() -> None:
    code, _, said = parse("--margin", "1")
    assert code == 2 and "Missing argument 'DATA'" in said


def test_a_text_is_a_path_and_a_whole_number_a_number() -> None:
    called: Any = crop
    made = called(data="a.jsonl", margin=2)
    assert made.data == Path("a.jsonl") and isinstance(made.margin, float)
