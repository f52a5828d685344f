"""Reading and checking `manifest.json`, the file that makes a stage folder self-describing.

`files` in a manifest lists every other file of the folder with its sha256 and size in bytes:

    {"schema": 1, "stage": "export", "files": {"onnx/decoder.onnx": {"sha256": "…", "size": 123}}, ...}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgetune_runtime.errors import BundleError, InputError, excerpt
from edgetune_runtime.json_file import read_json, read_json_value

MANIFEST = "manifest.json"
SCHEMA = 1
DEVICE_FILES = "engines"
"""Folder of a bundle that the device it runs on may add files to, beside those that the manifest lists."""
LOGS = "logs"
"""Folder of a stage's result that tells how the work went. It holds times, so it is no part of what the result is."""
DATASET = "dataset.json"
"""Manifest of a data set, beside its files, whose `files` are listed in the same way."""
_CHUNK = 1 << 18


Progress = Callable[[int], object]
"""Called with the number of bytes just read, for a progress bar over large weights."""


def sha256_file(path: Path, *, progress: Progress | None = None) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    # One buffer for all: a new one for each read is memory that the system has to clear, a third of the work.
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            if progress:
                progress(count)
    return digest.hexdigest()


def sha256_tree(path: Path, *, progress: Progress | None = None) -> str:
    """Return one sha256 for a file or a folder.

    For a folder it is the hash over its sorted (relative path, file sha256) pairs, `manifest.json` left
    out. A folder with a manifest is hashed from the manifest's `files`, so large weights are not read again; what lies
    in its `logs` does not count, so that equal results have equal hashes however long they took.

    Raises:
        InputError: nothing is at `path`.
        BundleError: the folder's manifest is broken.
    """
    if path.is_file():
        return sha256_file(path, progress=progress)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    if (path / MANIFEST).is_file():
        listed = read_manifest(path)["files"]
        pairs = {name: entry["sha256"] for name, entry in listed.items() if not name.startswith(f"{LOGS}/")}
    else:
        files = [file for file in path.rglob("*") if file.is_file()]
        pairs = {file.relative_to(path).as_posix(): sha256_file(file, progress=progress) for file in files}
    digest = hashlib.sha256()
    for name in sorted(pairs):
        digest.update(f"{name}\0{pairs[name]}\n".encode())
    return digest.hexdigest()


def data_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of the data files that a stage learned from, by their roles in its inputs."""
    inputs = manifest.get("inputs")
    told = inputs.items() if isinstance(inputs, Mapping) else ()
    files = {role: entry for role, entry in told if "data" in role.split() and "manifest" not in role.split()}
    return {
        role: entry["sha256"]
        for role, entry in files.items()
        if isinstance(entry, Mapping) and isinstance(entry.get("sha256"), str)
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a stage folder.

    Raises:
        BundleError: the folder or its manifest is missing, is not JSON, has another schema version, or
            lists a file in a way that cannot be checked (no sha256 or size, a path out of the folder).
    """
    path = folder / MANIFEST
    if not path.is_file():
        missing = f"{folder}: no such folder" if not folder.is_dir() else f"{folder}: no {MANIFEST} in this folder"
        raise BundleError(missing, hint="give a folder that an edgetune command wrote to the end")
    try:
        manifest = read_json_value(path)
    except InputError as error:
        raise BundleError(str(error), hint=error.hint) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{path}: not a manifest: it must be an object with 'files'")
    if manifest.get("schema") != SCHEMA:
        raise BundleError(
            f"{path}: schema {excerpt(manifest.get('schema'))}, this version reads schema {SCHEMA}",
            hint="write the folder again with this version of edgetune, or install the version that wrote it",
        )
    for name, entry in manifest["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{path}: file name {name!r} leads out of the folder")
        if not (
            isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)
        ):
            raise BundleError(f"{path}: file {name!r} lacks its 'sha256' or 'size'")
    return manifest


def refuse_unlisted(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse files that the manifest does not list: one that is loaded all the same would be verified by nobody.

    Hidden files, such as those that file managers leave, and what a device adds under `DEVICE_FILES` are left alone.

    Raises:
        BundleError: there is one; it is named.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        known = name.as_posix() in manifest["files"] or name.as_posix() == MANIFEST or name.parts[0] == DEVICE_FILES
        if not known and path.is_file() and not any(part.startswith(".") for part in name.parts):
            raise BundleError(
                f"{path}: not listed in {MANIFEST}, so nobody knows whether it belongs to the bundle",
                hint="delete the file, or export the bundle again",
            )


def verify_files(
    folder: Path,
    *,
    names: Collection[str] | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Check the files that the folder's manifest lists.

    Args:
        folder: a stage folder.
        names: those to check; `None` is every one.
        max_bytes: larger files are checked for their size only; `None` hashes everything.
        progress: told how many bytes were read.

    Raises:
        BundleError: a file is missing, has another size or another sha256; the first one is named.
    """
    fix = "copy the folder again, or write it again with --force"
    for name, entry in read_manifest(folder)["files"].items():
        if names is not None and name not in names:
            continue
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: listed in {MANIFEST} but missing", hint=fix)
        size = path.stat().st_size
        if size != entry["size"]:
            raise BundleError(f"{path}: {size} bytes, {MANIFEST} says {entry['size']}", hint=fix)
        if max_bytes is not None and size > max_bytes:
            continue
        if sha256_file(path, progress=progress) != entry["sha256"]:
            raise BundleError(f"{path}: sha256 differs from the one in {MANIFEST}: the file was changed", hint=fix)


def verify_listed(paths: Iterable[Path]) -> None:
    """Check files that are read by themselves, such as a data set's, against the lists that stand beside them.

    A file that neither a `manifest.json` nor a `dataset.json` in its folder lists has nothing to be compared with.

    Raises:
        BundleError: one has another sha256 than the list beside it says.
    """
    lists: dict[Path, dict[str, str]] = {}
    for path in paths:
        folder = path.parent
        if folder not in lists:
            lists[folder] = _listed(folder / DATASET) | _listed(folder / MANIFEST)
        expected = lists[folder].get(path.name)
        if expected is not None and path.is_file() and sha256_file(path) != expected:
            raise BundleError(
                f"{path}: was changed after it was written: its sha256 is not the one beside it in the folder",
                hint="write it again with --force; if the change is meant, move the file to a folder of its own",
            )


def _listed(path: Path) -> dict[str, str]:
    """Return the sha256 of each file that a manifest lists; none where it is missing or of another program's making."""
    try:
        return {name: entry["sha256"] for name, entry in read_json(path)["files"].items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}
