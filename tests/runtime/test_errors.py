"""Errors are one line, say how to fix it, and carry the documented exit code."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

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
    "Cancelled": 130,
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


def test_messages_can_be_printed() -> None:
    assert str(errors.InputError("half \ud83e of an owl")) == "half \\ud83e of an owl"


def test_record_errors_say_where() -> None:
    error = errors.RecordError("no image", path=Path("sets/a.jsonl"), line=17)
    assert str(error) == "sets/a.jsonl:17: no image"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "acme[gpu]"'),  # from a package index
        ({"url": "file:///home/me/my%20clone", "dir_info": {}}, 'pip install "/home/me/my clone[gpu]"'),
        ({"url": "file:///clone", "dir_info": {"editable": True}}, 'pip install --editable "/clone[gpu]"'),
        (
            {"url": "file:///dist/acme-1-py3-none-any.whl", "archive_info": {}},
            'pip install "/dist/acme-1-py3-none-any.whl[gpu]"',
        ),
        (
            {"url": "https://host/a.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}, "subdirectory": "sub"},
            'pip install "acme[gpu] @ git+https://host/a.git@c0ffee#subdirectory=sub"',
        ),
    ],
)
def test_an_extra_is_installed_from_where_its_distribution_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, command: str
) -> None:
    """Pip writes where a distribution came from into direct_url.json (PEP 610)."""
    info = tmp_path / "acme-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert errors.install_command("gpu", "acme") == command


def test_an_extra_of_what_is_not_installed_is_asked_for_by_name() -> None:
    assert errors.install_command("train", "acme-that-is-nowhere") == 'pip install "acme-that-is-nowhere[train]"'
