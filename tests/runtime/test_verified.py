"""Files that passed once are not read again, and one that was touched since is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from edgetune_runtime import verified
from edgetune_runtime.errors import BundleError
from edgetune_runtime.verified import cache_folder, verify_once

NAME, SIZE = "weights.data", 3 << 20
NAMES = {NAME}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage folder whose files count as settled at once, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SETTLED_S", 0)
    content = bytes(SIZE)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / NAME).write_bytes(content)
    listed = {NAME: {"sha256": hashlib.sha256(content).hexdigest(), "size": SIZE}}
    (tmp_path / "bundle/manifest.json").write_text(json.dumps({"schema": 1, "stage": "export", "files": listed}))
    time.sleep(0.02)  # longer than a step of the clock of files
    return tmp_path / "bundle"


def bytes_read(folder: Path) -> int:
    """What the system says that this process read during a comparison."""

    def counted() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = counted()
    verify_once(folder, NAMES)
    return counted() - before


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by /proc")
def test_a_file_is_read_once(folder: Path) -> None:
    assert bytes_read(folder) > SIZE
    assert bytes_read(folder) < SIZE / 10
    verify_once(folder, set())  # knows nothing of the file, and forgets nothing
    assert bytes_read(folder) < SIZE / 10
    os.utime(folder / NAME)
    assert bytes_read(folder) > SIZE
    moved = folder.rename(folder.with_name("moved"))
    assert bytes_read(moved) > SIZE


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by /proc")
def test_a_file_that_was_just_written_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLED_S", 3600)
    for _ in range(2):
        assert bytes_read(folder) > SIZE


@pytest.mark.parametrize("way", ["in place", "replaced", "shorter", "gone"])
def test_a_file_that_was_changed_is_found_whatever_its_times_say(folder: Path, way: str) -> None:
    verify_once(folder, NAMES)
    path, before = folder / NAME, (folder / NAME).stat()
    changed = bytearray(path.read_bytes())
    changed[SIZE // 2] ^= 1
    if way == "in place":
        with path.open("r+b") as stream:
            stream.write(changed)
    elif way == "replaced":
        (folder / "new").write_bytes(changed)
        os.replace(folder / "new", path)
    elif way == "shorter":
        path.write_bytes(changed[:-1])
    else:
        path.unlink()
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=rf"{NAME}: (sha256 differs|{SIZE - 1} bytes|listed in manifest)"):
        verify_once(folder, NAMES)


def test_another_manifest_has_other_notes(folder: Path) -> None:
    verify_once(folder, NAMES)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(hashlib.sha256(bytes(SIZE)).hexdigest(), "0" * 64))
    with pytest.raises(BundleError, match="sha256 differs"):
        verify_once(folder, NAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by /proc")
@pytest.mark.parametrize("content", ["", "[1]", '{"weights.data": 5}'])
def test_a_damaged_note_is_no_note(folder: Path, content: str) -> None:
    verify_once(folder, NAMES)
    (note,) = _cache().rglob("*.json")
    note.write_text(content)
    assert bytes_read(folder) > SIZE
    assert bytes_read(folder) < SIZE / 10


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by /proc")
def test_without_a_place_for_notes_files_are_read_every_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".occupied").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".occupied"))
    for _ in range(2):
        assert bytes_read(folder) > SIZE
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() is None
    for _ in range(2):
        assert bytes_read(folder) > SIZE


def test_notes_are_whole_files_of_the_users_own(folder: Path) -> None:
    verify_once(folder, NAMES)
    (note,) = (path for path in _cache().rglob("*") if path.is_file())
    assert list(json.loads(note.read_text())) == [NAME]
    shutil.rmtree(_cache())
    verify_once(folder, NAMES)


def _cache() -> Path:
    found = cache_folder()
    assert found is not None
    return found
