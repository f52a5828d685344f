"""The contract between stages: one folder each, written atomically, with a manifest; skipped when unchanged.

A stage builds in `.NAME.partial` beside its output. Only a finished folder with its manifest on disk is renamed into
place, so a killed run leaves nothing at the output path and nothing with a manifest anywhere. What it leaves in the
partial folder is no input of any stage.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
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
    verify_listed,
)

_FINGERPRINT = ".fingerprint"
_PARTIAL = re.compile(r"\..+\.partial", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPORTED = ("torch", "transformers", "peft", "accelerate", "numpy", "onnx", "onnxruntime", "tokenizers", "PIL")
_DISTRIBUTION = {"PIL": "pillow"}


@dataclass(frozen=True)
class StageResult:
    """What a stage left behind.

    Attributes:
        folder: where it is, as the caller named it.
        manifest: of the folder; after a dry run the one that would be written, less `result` and `files`.
        skipped: an earlier result was kept, for nothing has changed.
        dry_run: nothing was written.
        seconds: of the whole call, hashing included.
        facts: what was learned of the inputs on the way, such as the number of `records`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    skipped: bool
    dry_run: bool = False
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Mapping[str, Any]:
        """What the stage says about its result; empty after a dry run that found nothing to keep."""
        found: Mapping[str, Any] = self.manifest.get("result", {})
        return found


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
        InputError: an input is missing or unfinished, the output is not ours to write, or another process is writing
            it.
        BundleError: an input was changed after the stage that wrote it.
        OSError: with ENOSPC when the disk is full and EFBIG when a file may grow no further, naming the output,
            whatever `build` raised because of it.
    """
    started = perf_counter()
    place = _check_places(stage, output, inputs)
    plan = _plan(stage, inputs, settings, seed)
    if dry_run:
        kept = None if force else _unchanged(place, plan["fingerprint"])
        return StageResult(output, kept or plan, kept is not None, True, perf_counter() - started)
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place):
        _recover(place)
        work = _work_folder(place)
        can_resume = resumable and _mark_of(work) == plan["fingerprint"]
        if work.exists() and not can_resume:
            shutil.rmtree(work)
        kept = None if force else _unchanged(place, plan["fingerprint"])
        if kept is not None:
            return StageResult(output, kept, True, seconds=perf_counter() - started)
        try:
            work.mkdir(exist_ok=True)
            with _full_disk_named(work):
                (work / _FINGERPRINT).write_text(plan["fingerprint"], encoding="utf-8")
                result = build(work)
                manifest = _finish(work, plan, result)
                _swap(work, place)
        except BaseException:
            _recover(place)
            if not resumable:
                shutil.rmtree(work, ignore_errors=True)
            raise
    return StageResult(output, manifest, False, seconds=perf_counter() - started)


def check_input(path: Path, role: str = "input") -> None:
    """Refuse an input that no stage has finished, or that was changed after the stage that wrote it.

    `run_stage` does this with all of its inputs; verbs that write no folder call it themselves.

    Args:
        path: a file or a folder; those that no stage wrote have nothing to be compared with, and pass.
        role: what it is, for messages.

    Raises:
        InputError: nothing is there, or it is what an interrupted run left.
        BundleError: a file differs from what the manifest.json or dataset.json beside it says.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder (the {role})")
    unfinished = _unfinished(path.resolve())
    if unfinished is not None:
        raise InputError(
            f"{path}: the {role} is not finished: {unfinished} is where an interrupted run was writing",
            hint="run the command that writes it once more, to its end",
        )
    if path.is_file():
        verify_listed([path])


def _unfinished(place: Path) -> Path | None:
    """Return the folder that a stage builds in, or a copy of one, in which a resolved path lies."""
    for folder in (place, *place.parents):
        if _PARTIAL.fullmatch(folder.name) or _mark_of(folder) is not None:
            return folder
    return None


@contextlib.contextmanager
def _hashing() -> Iterator[Progress]:
    """Show a bar where hashing takes longer than two seconds, as it does for weights of some gigabytes."""
    with tqdm(desc="checking files", unit="B", unit_scale=True, leave=False, disable=None, delay=2) as bar:
        yield bar.update


def _check_places(stage: str, output: Path, inputs: Mapping[str, Path]) -> Path:
    """Return where the output really is: behind a link, the folder itself is replaced.

    Raises:
        InputError: an input is missing or unfinished, or the output would overwrite or grow an input, or holds files
            which no stage of ours wrote.
    """
    elsewhere = "choose another folder for the output"
    place = _resolved(output)
    if _unfinished(place) is not None:
        raise InputError(f"{output}: is kept for results that are not finished", hint=elsewhere)
    for name, path in inputs.items():
        check_input(path, f"{name} of {stage}")
        source = path.resolve()
        if place == source or place in source.parents or (source.is_dir() and source in place.parents):
            raise InputError(f"{output}: the output overlaps the {name} at {path}", hint=elsewhere)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, not a folder", hint=elsewhere)
    if not output.is_dir() or not any(output.iterdir()):
        return place
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
    return place


def _resolved(path: Path) -> Path:
    loop = InputError(f"{path}: a symbolic link that leads back to itself", hint="remove the link")
    try:
        place = path.resolve()
    except RuntimeError as error:  # what pathlib makes of ELOOP, up to Python 3.12
        raise loop from error
    if place.is_symlink():
        raise loop
    return place


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


def _work_folder(output: Path) -> Path:
    """Return the folder to build in, which is not made yet.

    Raises:
        InputError: something else is in its place, which is not ours to remove.
    """
    work = output.parent / f".{output.name}.partial"
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise InputError(f"{work}: is in the way of the folder that {output} is built in", hint="remove or rename it")
    return work


def _mark_of(work: Path) -> str | None:
    """Return the fingerprint of what was being built in a folder, if it is one of ours."""
    mark = work / _FINGERPRINT
    text = mark.read_text(encoding="utf-8", errors="replace") if mark.is_file() else ""
    return text if _SHA256.fullmatch(text) else None


def _finish(work: Path, plan: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Flush and hash every file, then write the manifest last."""
    mark = work / _FINGERPRINT
    ordinary = stat.S_IMODE(mark.stat().st_mode)
    mark.unlink()
    files = {}
    with _hashing() as progress:
        for name in _files(work):
            path = work / name
            with path.open("rb") as stream:
                if not path.is_symlink():  # safetensors writes 0600, which another user of a device cannot read
                    os.fchmod(stream.fileno(), stat.S_IMODE(os.fstat(stream.fileno()).st_mode) | ordinary)
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


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|Not enough free space to write \d+ bytes")


@contextlib.contextmanager
def _full_disk_named(work: Path) -> Iterator[None]:
    """Raise OSError with the output's folder for whatever a library makes of a full disk or of a limit on file sizes.

    torch and safetensors raise errors of their own, numpy gives no error number (neither for a short write nor for
    the room that it asks for before it writes a large array), and `shutil.copyfile` blames the file that it reads.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in _FULL:
            told = [code for code in _FULL if os.strerror(code) in str(error)]
            full = shutil.disk_usage(work).free < 1 << 16 or _SHORT_WRITE.search(str(error)) is not None
            number = told[0] if told else errno.ENOSPC if full else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(work.parent)) from error
