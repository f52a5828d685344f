"""Files that are there whole or not at all, even when the disk fills up or the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text file beside its place and move it there when it is complete.

    Raises:
        OSError: it cannot be written; `filename` is `path`, whatever the system named.
    """
    work = path.with_name(f".{path.name}.partial")
    try:
        try:
            work.write_text(text, encoding="utf-8")
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
