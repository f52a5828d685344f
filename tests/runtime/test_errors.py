"""Errors are one line, say how to fix it, and carry the documented exit code."""

from __future__ import annotations

import inspect
from pathlib import Path

from edgetune_runtime import errors

EXIT_CODES = {
    "EdgetuneError": 2,
    "InputError": 2,
    "ImageError": 2,
    "RecordError": 2,
    "BundleError": 2,
    "ParityError": 1,
    "DivergenceError": 1,
    "GateFailed": 1,
    "MissingDependency": 3,
    "GateInconclusive": 4,
}


def test_exit_codes() -> None:
    found = {
        name: kind.exit_code
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.EdgetuneError)
    }
    assert found == EXIT_CODES


def test_messages_are_one_line() -> None:
    error = errors.InputError("first\n  second", hint="do this")
    assert str(error) == "first second" and error.hint == "do this"


def test_record_errors_say_where() -> None:
    error = errors.RecordError("no image", path=Path("sets/a.jsonl"), line=17)
    assert str(error) == "sets/a.jsonl:17: no image"
