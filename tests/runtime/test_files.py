"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetune_runtime.files import write_whole


@pytest.mark.parametrize(
    ("content", "held"), [("née\n", "née\n".encode()), (b"\0\1", b"\0\1"), (memoryview(b"x"), b"x")]
)
def test_text_and_bytes_replace_what_was_there(content: object, held: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("something longer than that")
    write_whole(path, content)
    assert path.read_bytes() == held
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failure_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, "new")
    assert caught.value.filename == str(path) and path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
