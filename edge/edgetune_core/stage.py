"""The contract between stages: one folder each, written atomically, with a manifest; skipped when unchanged.

A stage builds in `.NAME.partial` beside its output. Only a finished folder with its manifest on disk is renamed into
place, so a killed run leaves nothing at the output path and nothing with a manifest anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edgetune_core.lock import locked
from edgetune_runtime import __version__
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.manifest import (
    DEVICE_FILES,
    MANIFEST,
    SCHEMA,
    Progress,
    read_manifest,
    sha256_file,
    sha256_tree,
    verify_files,
)

_FINGERPRINT = ".fingerprint"
_REPORTED = ("torch", "transformers", "peft", "accelerate", "numpy", "onnx", "onnxruntime", "tokenizers", "PIL")
_DISTRIBUTION = {"PIL": "pillow"}


@dataclass(frozen=True)
class StageResult:
    """What a stage left behind: its folder, the manifest, and whether an earlier result was kept.

    After a dry run the manifest is the one that would be written, less `result` and `files`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    skipped: bool


def run_stage(
    stage: str,
    output: Path,
    *,
    inputs: Mapping[str, Path],
    settings: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    seed: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    resumable: bool = False,
) -> StageResult:
    """Build a stage folder at `output`, or keep the one that is there when nothing has changed.

    Args:
        stage: the verb, as written in the manifest.
        output: the folder to write.
        inputs: files and folders that the result depends on; their sha256 decide whether it is built again.
        settings: everything else it depends on, as JSON values (paths become text).
        build: writes the files into the folder it is given and returns the manifest's `result`.
        seed: the seed of whatever is random in it.
        force: build even when nothing has changed.
        dry_run: write nothing; say whether it would be skipped.
        resumable: keep an interrupted build's files for the next run with the same inputs and settings.

    Raises:
        InputError: an input is missing, the output is not ours to write, or another process is writing it.
        BundleError: an input is a stage folder whose files do not match its manifest.
        OSError: with ENOSPC when the disk is full, whatever `build` raised because of it.
    """
    _check_places(stage, output, inputs)
    plan = _plan(stage, inputs, settings, seed)
    place = output.resolve()  # behind a link, the folder itself is replaced
    if dry_run:
        kept = None if force else _unchanged(place, plan["fingerprint"])
        return StageResult(output, kept or plan, kept is not None)
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place):
        _recover(place)
        kept = None if force else _unchanged(place, plan["fingerprint"])
        if kept is not None:
            return StageResult(output, kept, True)
        work = _work_folder(place, plan["fingerprint"], resumable)
        try:
            with _full_disk_named(work):
                result = build(work)
                manifest = _finish(work, plan, result)
                _swap(work, place)
        except BaseException:
            _recover(place)
            if not resumable:
                shutil.rmtree(work, ignore_errors=True)
            raise
    return StageResult(output, manifest, False)


@contextlib.contextmanager
def _hashing() -> Iterator[Progress]:
    """Show a bar where hashing takes longer than two seconds, as it does for weights of some gigabytes."""
    with tqdm(desc="checking files", unit="B", unit_scale=True, leave=False, disable=None, delay=2) as bar:
        yield bar.update


def _check_places(stage: str, output: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse an output that would overwrite or grow an input, or that holds files which no stage of ours wrote."""
    elsewhere = "choose another folder for the output"
    place = output.resolve()
    for name, path in inputs.items():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder (the {name} of {stage})")
        source = path.resolve()
        if place == source or place in source.parents or (source.is_dir() and source in place.parents):
            raise InputError(f"{output}: the output overlaps the {name} at {path}", hint=elsewhere)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, not a folder", hint=elsewhere)
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / MANIFEST).is_file():
        raise InputError(f"{output}: holds files that edgetune did not write", hint=elsewhere)
    manifest = read_manifest(output)
    if manifest.get("stage") != stage:
        raise InputError(f"{output}: holds the result of {manifest.get('stage')!r}, not of {stage!r}", hint=elsewhere)
    # What a device built from a bundle is worth no more than the bundle.
    added = {name for name in _files(output) if stage == "export" and name.startswith(f"{DEVICE_FILES}/")}
    foreign = sorted(set(_files(output)) - set(manifest["files"]) - added)
    if foreign:
        raise InputError(f"{output / foreign[0]}: edgetune did not write this file", hint=f"move it, or {elsewhere}")


def _plan(stage: str, inputs: Mapping[str, Path], settings: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Return the manifest as far as it is known before the work, fingerprint included."""
    sources = {}
    with _hashing() as progress:
        for name, path in inputs.items():
            if (path / MANIFEST).is_file():  # then the tree's hash comes from there: make sure that it tells the truth
                verify_files(path, progress=progress)
            sources[name] = {"path": str(path), "sha256": sha256_tree(path, progress=progress)}
    plain = json.loads(json.dumps(dict(settings), default=_plain))
    identity = {
        "stage": stage,
        "inputs": {name: source["sha256"] for name, source in sources.items()},
        "settings": plain,
        "seed": seed,
        "edgetune": __version__,
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return {
        "schema": SCHEMA,
        "stage": stage,
        "fingerprint": fingerprint,
        "inputs": sources,
        "settings": plain,
        "seed": seed,
    }


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a stage setting must be a JSON value or a path, not {type(value).__name__}")


def _unchanged(output: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the manifest of an earlier result with this fingerprint whose files are all intact."""
    try:
        manifest = read_manifest(output)
        if manifest.get("fingerprint") != fingerprint:
            return None
        with _hashing() as progress:
            verify_files(output, progress=progress)
    except BundleError:
        return None  # absent or damaged: it is built again
    return manifest


def _work_folder(output: Path, fingerprint: str, resumable: bool) -> Path:
    """Return the folder to build in: empty, or the interrupted one of the same fingerprint when resumable."""
    work = output.parent / f".{output.name}.partial"
    mark = work / _FINGERPRINT
    if work.exists() and not (resumable and mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    if resumable:
        mark.write_text(fingerprint, encoding="utf-8")
    return work


def _finish(work: Path, plan: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Flush and hash every file, then write the manifest last."""
    (work / _FINGERPRINT).unlink(missing_ok=True)
    files = {}
    with _hashing() as progress:
        for name in _files(work):
            path = work / name
            with path.open("rb") as stream:
                os.fsync(stream.fileno())  # the manifest must never outlive the data it vouches for
            files[name] = {"sha256": sha256_file(path, progress=progress), "size": path.stat().st_size}
    manifest = {
        **plan,
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "result": dict(result),
        "files": files,
    }
    with (work / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    return manifest


def _files(folder: Path) -> list[str]:
    """Return the relative paths of all files in a folder but its manifest, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def _versions() -> dict[str, str]:
    """Return the versions of what took part: Python, edgetune, and the libraries that were imported."""
    found = {"edgetune": __version__, "python": platform.python_version()}
    for module in _REPORTED:
        if module in sys.modules:
            name = _DISTRIBUTION.get(module, module)
            with contextlib.suppress(PackageNotFoundError):  # e.g. onnxruntime from the -gpu distribution
                found[name] = version(name)
    return found


def _swap(work: Path, output: Path) -> None:
    """Put the finished folder in place; an older result steps aside first, for no rename replaces a full folder."""
    aside = _aside(output)
    if output.exists():
        os.replace(output, aside)
    os.replace(work, output)
    parent = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    shutil.rmtree(aside, ignore_errors=True)


def _recover(output: Path) -> None:
    """Bring back the older result of a run that was stopped between the two renames of `_swap`."""
    aside = _aside(output)
    if aside.exists():
        if output.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, output)


def _aside(output: Path) -> Path:
    return output.parent / f".{output.name}.old"


@contextlib.contextmanager
def _full_disk_named(work: Path) -> Iterator[None]:
    """Raise OSError(ENOSPC) for whatever a library makes of a full disk (torch and safetensors raise their own)."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, os.strerror(error.errno), str(work.parent)) from error
        told = "No space left on device" in str(error)
        if told or shutil.disk_usage(work).free < 1 << 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work.parent)) from error
        raise
