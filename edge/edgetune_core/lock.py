"""One writer at a time for a folder, by an advisory lock file beside it that the system drops with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edgetune_runtime.errors import InputError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside `folder` for the duration of the block; the file is gone afterwards.

    Raises:
        InputError: another process holds it.
    """
    path = folder.parent / f".{folder.name}.lock"
    descriptor = _acquire(path)
    if descriptor is None:
        raise InputError(
            f"{folder}: another edgetune process is writing this folder", hint="wait for it, or choose another --output"
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held: whoever opened it meanwhile notices and tries again
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # the former holder removed the file between our open and our lock
        os.close(descriptor)
