"""What can be measured, what its row is called, and which worker process runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune_runtime.bench.results import check_row_name
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.manifest import MANIFEST
from edgetune_runtime.pixels import area_text

BUNDLE = "bundle"


@dataclass(frozen=True)
class Target:
    """One row of a measurement: a folder, how it is run, and the name it has in the table.

    Attributes:
        name: of the row; `name_apart` may choose a longer one.
        path: the bundle or checkpoint.
        kind: what the folder is, e.g. "bundle".
        worker: the worker's module and its arguments, up to those that all workers share.
        adapter: LoRA adapter to apply to the checkpoint.
        title: what a bundle's manifest says it is, e.g. "onnx-int4-gptq-g128".
        chosen: the user chose the name, so it stays as it is.
        max_pixels: largest area of the resized pictures; None for the folder's own.
    """

    name: str
    path: Path
    kind: str
    worker: tuple[str, ...]
    adapter: Path | None = None
    title: str | None = None
    chosen: bool = False
    max_pixels: int | None = None

    @property
    def bound(self) -> str:
        """What the row's name ends with: the bound of its pictures, where there is one."""
        return "" if self.max_pixels is None else f"@{area_text(self.max_pixels)}"

    def inputs(self) -> dict[str, Path]:
        """The folders that decide this row's result, by name."""
        return {self.name: self.path} | ({f"{self.name} adapter": self.adapter} if self.adapter else {})

    def command(self) -> list[str]:
        """The worker process, up to the arguments that all workers share."""
        bound = () if self.max_pixels is None else ("--max-pixels", str(self.max_pixels))
        return [sys.executable, "-m", *self.worker, *bound]


def at_bounds(targets: Sequence[Target], bounds: Sequence[int]) -> list[Target]:
    """Return each target once for every bound of its pictures, in pixels; without bounds as they are."""
    return [replace(target, max_pixels=bound) for target in targets for bound in bounds] or list(targets)


def identify_bundle(path: Path, *, engine: str | None = None) -> Target:
    """Return the target of a bundle, run by the runtime alone. Whether it is intact is the worker's to find out.

    `engine` is as in `Session.load`.

    Raises:
        InputError: the folder is missing or not a bundle.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder", hint="name a folder written by edgetune export")
    if not is_bundle(path):
        raise InputError(f"{path}: not a bundle (no manifest.json of edgetune export)")
    choices = () if engine is None else ("--engine", engine)
    worker = ("edgetune_runtime.bench.worker", "--bundle", str(path), *choices)
    return Target(path.resolve().name, path, BUNDLE, worker, title=_title(path))


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle; one whose manifest is damaged counts, so that its row can say what is wrong."""
    if not (path / MANIFEST).is_file():
        return False
    stage = _read(path).get("stage", "export")
    return bool(stage == "export")


def parse(text: str, identify: Callable[[Path], Target]) -> Target:
    """Read a target from a command line: `FOLDER` or `NAME=FOLDER`, where NAME is what the row is called.

    Raises:
        InputError: what `identify` raises for a folder that it does not know.
    """
    name, equals, path = text.partition("=")
    if not equals or not name or Path(text).exists():
        return identify(Path(text))
    return replace(identify(Path(path)), name=name, chosen=True)


def with_baseline(targets: Sequence[Target], baseline: Target | None) -> tuple[list[Target], str | None]:
    """Name the rows apart; a baseline that is not among them becomes the first. Returns its name, too.

    Raises:
        InputError: the same folder, or the same chosen name, appears twice.
    """
    rows, place = list(targets), None
    if baseline is not None:
        folder = baseline.path.resolve()
        plain = [(i, target) for i, target in enumerate(rows) if not target.adapter and target.max_pixels is None]
        same = (i for i, target in plain if target.path.resolve() == folder)
        place = next(same, None)
        if place is None:
            place = 0
            rows.insert(0, baseline)
    named = name_apart(rows)
    return named, None if place is None else named[place].name


def name_apart(targets: Sequence[Target]) -> list[Target]:
    """Give every target a name of its own.

    It is the folder's name. Where several have the same one it is what the bundle's manifest says it is, and where
    that does not tell them apart either, the folder's name with as many parents in front as do. A bound of the pictures
    stands behind it, as in "int4@400k".

    Raises:
        InputError: the same folder, or the same chosen name, appears twice, or a name cannot be one.
    """
    tails = [_tail(target) for target in targets]
    twice = next((target for target, own in zip(targets, tails, strict=True) if tails.count(own) > 1), None)
    if twice is not None:
        raise InputError(f"{twice.path}: named twice", hint="name every bundle or checkpoint once")
    short = [
        target.name + target.bound if target.chosen else own[-1] for target, own in zip(targets, tails, strict=True)
    ]
    titles = [target.title and target.title + target.bound for target in targets]
    named: list[Target] = []
    for target, own, name, title in zip(targets, tails, short, titles, strict=True):
        if not target.chosen and short.count(name) > 1:
            if title is not None and titles.count(title) == 1 and title not in short:
                name = title
            else:
                rivals = [other for other in tails if other is not own]
                depth = next(n for n in range(1, len(own) + 1) if all(rival[-n:] != own[-n:] for rival in rivals))
                name = "/".join(own[-depth:])
        named.append(replace(target, name=name))
    names = [target.name for target in named]
    for name in names:
        check_row_name(name)
    both = next((name for name in names if names.count(name) > 1), None)
    if both is not None:
        raise InputError(f"two rows would be called {both!r}", hint="give each NAME=FOLDER a name of its own")
    return named


def _tail(target: Target) -> tuple[str, ...]:
    """The parts of a target's path; an adapter or a bound of the pictures makes another row of the same folder."""
    *parents, name = target.path.resolve().parts
    return (*parents, name + (f"+{target.adapter.resolve().name}" if target.adapter else "") + target.bound)


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json_value(path / MANIFEST)
    except (OSError, InputError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _title(path: Path) -> str | None:
    """Format, precision, method and group size of a bundle, as far as its manifest tells."""
    manifest = _read(path)
    bundle = (manifest.get("result") or {}).get("bundle") or {}
    calibration = bundle.get("calibration") or {}
    parts = [bundle.get("format"), bundle.get("precision")]
    if calibration or bundle.get("precision") == "int4":
        rounded = manifest.get("settings") or {}
        group = calibration.get("group_size") or rounded.get("block_size")
        # Several formats name themselves after their method, which is then said once.
        method = calibration.get("method", "rtn")
        parts += [None if method == bundle.get("format") else method, f"g{group}" if group else None]
        parts.append("sym" if (calibration or rounded).get("symmetric") else None)
    known = [str(part) for part in parts if part]
    return "-".join(known) if len(known) >= 2 else None
