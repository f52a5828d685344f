"""Files that are there whole or not at all, even when the disk fills up or the process is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | Any) -> None:
    """Write a file beside its place and move it there when it is complete and on disk.

    Args:
        path: of the file; processes that write it at once do not disturb each other, and the last one stays.
        content: UTF-8 text, or anything that holds bytes.

    Raises:
        OSError: it cannot be written; `filename` is `path`, whatever the system named.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with work.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
