"""What a data set is made of: the sha256 of every file and picture, for `dataset.json`, DVC, git and the train stage.

    {"version": 1, "records": 120, "files": {"data.jsonl": {"sha256": "…", "size": 1234}},
     "images": {"../pictures/a.jpg": {"sha256": "…", "size": 5678}}, "images_sha256": "…", "made_from": {...}}

Paths are relative to the folder of `dataset.json`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import DATASET, sha256_file, sha256_tree

NAME = DATASET
VERSION = 1
Hashed = dict[str, Any]


def hash_files(paths: Iterable[Path]) -> dict[Path, Hashed]:
    """Return the sha256 and the size in bytes of each file, or of all that is in a folder.

    Raises:
        InputError: one is missing.
    """
    found: dict[Path, Hashed] = {}
    for path in dict.fromkeys(paths):
        if path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found[path] = {"sha256": sha256_tree(path), "size": size}
            continue
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        found[path] = {"sha256": sha256_file(path), "size": path.stat().st_size}
    return found


def set_hash(entries: Mapping[Any, Hashed]) -> str:
    """Return one sha256 over the contents of files, whatever they are called and in whatever order."""
    return hashlib.sha256("\n".join(sorted(entry["sha256"] for entry in entries.values())).encode()).hexdigest()


def relative(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder, with forward slashes."""
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def describe(
    folder: Path,
    *,
    records: int,
    files: Iterable[Path],
    images: Mapping[Path, Hashed],
    made_from: Mapping[Path, Hashed],
) -> dict[str, Any]:
    """Return the manifest of a data set.

    Args:
        folder: where `dataset.json` will be.
        records: how many there are.
        files: of the data set itself.
        images: hashes of its pictures, by path.
        made_from: hashes of the files that it was converted from, by path.
    """
    return {
        "version": VERSION,
        "records": records,
        "files": _named(hash_files(files), folder),
        "images": _named(images, folder),
        "images_sha256": set_hash(images),
        "made_from": _named(made_from, folder),
    }


def _named(entries: Mapping[Path, Hashed], folder: Path) -> dict[str, Hashed]:
    return {relative(path, folder): entry for path, entry in entries.items()}


def read(path: Path) -> dict[str, Any]:
    """Return a manifest that `describe` made, from its file.

    Raises:
        InputError: it is missing, broken, or of another version.
    """
    value = read_json(path)
    if value.get("version") != VERSION:
        raise InputError(f"{path}: not a data set's manifest of version {VERSION}")
    return value


def changes(path: Path) -> list[str]:
    """Return what of a data set is no longer as its manifest says, one line each; empty when all is.

    Raises:
        InputError: the manifest cannot be read.
    """
    found = []
    manifest = read(path)
    for name, entry in {**manifest["files"], **manifest["images"]}.items():
        file = path.parent / name
        if not file.is_file():
            found.append(f"{file}: missing")
        elif file.stat().st_size != entry["size"] or sha256_file(file) != entry["sha256"]:
            found.append(f"{file}: changed")
    return found


def beside(data: Path) -> Path | None:
    """Return the manifest of a data file (or of its folder), where there is one that lists it."""
    path = (data if data.is_dir() else data.parent) / NAME
    if not path.is_file():
        return None
    return path if data.is_dir() or data.name in read(path)["files"] else None
