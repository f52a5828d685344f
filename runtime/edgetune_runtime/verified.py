"""Files that were compared with their sha256 once are not read again while they stay as they are.

A file is taken to be as it was while it has the same place on the same disk (device and inode), the same size, and the
same times of its last write (mtime) and of its last change of any kind (ctime), in nanoseconds. The system sets the
ctime whenever a file is written, and programs cannot choose it. These five numbers a file are all that the cache holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.files import write_whole
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import MANIFEST, verify_files

SETTLED_S = 2.0
"""Seconds that a file must have rested before it is relied on: times on disk advance in steps, and a write within the
step of the last one leaves them as they were."""


def verify_once(folder: Path, names: Collection[str]) -> None:
    """Check files that the folder's manifest lists, but for those that passed before and were not touched since.

    What passed is noted in the user's cache (`cache_folder`), by the folder's path and its manifest. Where nothing can
    be written, files are compared every time.

    Raises:
        BundleError: as `verify_files`.
    """
    cache = cache_folder()
    note = None if cache is None else cache / "verified" / f"{_key(folder)}.json"
    known = {} if note is None else _read(note)
    # Taken before the files are read: one that changes meanwhile is another file the next time.
    states = {name: _state(folder / name) for name in names}
    verify_files(folder, names={name for name in names if states[name] is None or states[name] != known.get(name)})
    now = time.time_ns()
    settled = {name: state for name, state in states.items() if state and max(state[3:]) < now - SETTLED_S * 1e9}
    if note is not None and known | settled != known:
        _write(note, known | settled)


def cache_folder() -> Path | None:
    """Where the runtime keeps what can be found out again: `$XDG_CACHE_HOME/edgetune`, by default `~/.cache/edgetune`.

    None for a user without a home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "edgetune") if os.path.isabs(home) else None


def _key(folder: Path) -> str:
    """What stands for this folder with this manifest."""
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    digest.update(b"\0" + (folder / MANIFEST).read_bytes())
    return digest.hexdigest()


def _state(path: Path) -> list[int] | None:
    """What tells that a file was not touched; None where there is no such file, which `verify_files` says better."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(note: Path) -> dict[str, Any]:
    try:
        return read_json(note)
    except InputError:  # none yet, or one that was damaged
        return {}


def _write(note: Path, states: dict[str, list[int]]) -> None:
    """Replace a note; sessions that load at once never see half of one."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(states))
