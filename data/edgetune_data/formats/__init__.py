"""The formats that are read, and how a file or folder is recognised as one of them.

Built-in formats are asked first; those of other packages (entry point group `edgetune.formats`) only about what none of
these recognises, so that reading ordinary data never searches the installed packages.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

from edgetune_data.formats import (
    canonical,
    coco,
    cvat,
    labelstudio,
    llava,
    openai,
    refcoco,
    roboflow,
    swift,
    table,
    vlm_r1,
    voc,
    vqa,
    yolo,
)
from edgetune_data.formats.base import Format
from edgetune_data.formats.sniffing import Sniffed
from edgetune_runtime.errors import InputError
from edgetune_runtime.plugins import Plugins

BUILT_IN = (
    table.CSV,
    table.PARQUET,
    roboflow.FORMAT,
    canonical.FORMAT,
    refcoco.FORMAT,
    yolo.FORMAT,
    cvat.FORMAT,
    voc.FORMAT,
    coco.FORMAT,
    labelstudio.FORMAT,
    vqa.FORMAT,
    vlm_r1.FORMAT,
    openai.FORMAT,
    llava.FORMAT,
    swift.FORMAT,
)
"""Formats of this package, in the order in which they are asked: the one that would take most comes last."""


OTHERS: Plugins[Format] = Plugins(
    "edgetune.formats",
    "format",
    "an edgetune_data.formats.base.Format",
    lambda found: isinstance(found, Format),
    built_in=("auto", *(format.name for format in BUILT_IN)),
    named=True,
)
"""Formats that installed packages add."""


@cache
def others() -> tuple[Format, ...]:
    """Return the formats of other installed packages, sorted by name.

    Raises:
        InputError: one cannot be loaded, is no `Format`, or has the name of another one.
        MissingDependency: one needs something that cannot be imported.
    """
    return tuple(OTHERS.load_all())


def names() -> list[str]:
    """Return the names of all formats, the built-in ones first."""
    return [*(format.name for format in BUILT_IN), *OTHERS.names()]


def find(name: str, path: Path) -> Format:
    """Return the format of this name, or for "auto" that of the file or folder.

    Raises:
        InputError: there is no such format, nothing at `path`, or nothing that is recognised.
    """
    if name == "auto":
        return sniff(path)
    for format in BUILT_IN:
        if format.name == name:
            return format
    return OTHERS.load(name)


def sniff(path: Path) -> Format:
    """Return the format of a file or folder, told by names, keys and shapes.

    Raises:
        InputError: there is nothing, or it is none that is known.
    """
    if not path.exists():
        raise InputError(f"{path}: no such data file")
    changed = path.stat()
    found = _asked(path) if path.is_dir() else _asked_once(path.absolute(), changed.st_mtime_ns, changed.st_size)
    if found is None:
        raise InputError(
            f"{path}: not recognised as any of {', '.join(names())}",
            hint="name its format: edgetune data convert --format NAME",
        )
    return found


# A verb asks several times, and a JSON file has to be read whole to tell.
@lru_cache(maxsize=64)
def _asked_once(path: Path, _changed: int, _size: int) -> Format | None:
    return _asked(path)


def _asked(path: Path) -> Format | None:
    found = Sniffed(path)
    for format in BUILT_IN:
        if format.sniff(found):
            return format
    for format in others():
        if format.sniff(found):
            return format
    # A JSONL file could hold records of ours, all of them misspelled; our own reader says what is wrong with each.
    return canonical.FORMAT if found.is_json_lines else None
