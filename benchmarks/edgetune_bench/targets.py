"""What can be measured: an exported bundle, a Hugging Face checkpoint, or a checkpoint with a LoRA adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgetune_runtime.errors import InputError

Kind = Literal["bundle", "checkpoint"]


@dataclass(frozen=True)
class Target:
    """One row of a measurement: a folder, how it is run, and the name it has in the table.

    Attributes:
        name: of the row; `name_apart` may put parent folders in front.
        path: the bundle or checkpoint.
        kind: which worker runs it.
        adapter: LoRA adapter to apply to the checkpoint.
        chosen: the user chose the name, so it stays as it is.
    """

    name: str
    path: Path
    kind: Kind
    adapter: Path | None = None
    chosen: bool = False

    def inputs(self) -> dict[str, Path]:
        """The folders that decide this row's result, by name."""
        return {self.name: self.path} | ({f"{self.name} adapter": self.adapter} if self.adapter else {})

    def command(self) -> list[str]:
        """The worker process of this kind of target, up to the arguments that both workers share.

        A bundle needs only the runtime package; a checkpoint needs torch and transformers.
        """
        if self.kind == "bundle":
            return [sys.executable, "-m", "edgetune_runtime.worker", "--bundle", str(self.path)]
        adapter = ["--adapter", str(self.adapter)] if self.adapter else []
        return [sys.executable, "-m", "edgetune_bench.torch_worker", "--checkpoint", str(self.path), *adapter]


def identify(path: Path, *, adapter: Path | None = None) -> Target:
    """Tell what the folder `path` holds. Whether it is intact is the worker's to find out.

    Raises:
        InputError: it is neither a bundle nor a checkpoint, or `adapter` is not an adapter.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder", hint="name a bundle or a Hugging Face checkpoint folder")
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: no adapter_config.json", hint="name the adapter folder that edgetune train wrote")
    kind = _kind(path)
    if kind == "bundle" and adapter is not None:
        raise InputError(f"{path}: a bundle takes no --adapter", hint="merge the adapter first, then export")
    target = Target("", path, kind, adapter)
    return replace(target, name=_tail(target)[-1])


def parse(text: str) -> Target:
    """Read a target from a command line: `FOLDER` or `NAME=FOLDER`, where NAME is what the row is called.

    Raises:
        InputError: the folder is neither a bundle nor a checkpoint.
    """
    name, equals, path = text.partition("=")
    if not equals or not name or Path(text).exists():
        return identify(Path(text))
    return replace(identify(Path(path)), name=name, chosen=True)


def name_apart(targets: Sequence[Target]) -> list[Target]:
    """Give every target a name of its own: the folder's name, with as many parents in front as tell it from the others.

    Raises:
        InputError: the same folder, or the same chosen name, appears twice.
    """
    named: list[Target] = []
    for target in targets:
        own = _tail(target)
        rivals = [_tail(other) for other in targets if other is not target]
        if own in rivals:
            raise InputError(f"{target.path}: named twice", hint="name every bundle or checkpoint once")
        depth = next(n for n in range(1, len(own) + 1) if all(rival[-n:] != own[-n:] for rival in rivals))
        named.append(target if target.chosen else replace(target, name="/".join(own[-depth:])))
    names = [target.name for target in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two rows would be called {twice!r}", hint="give each NAME=FOLDER a name of its own")
    return named


def _tail(target: Target) -> tuple[str, ...]:
    """The parts of a target's path; an adapter makes another row of the same folder."""
    *parents, name = target.path.resolve().parts
    return (*parents, f"{name}+{target.adapter.resolve().name}" if target.adapter else name)


def _kind(path: Path) -> Kind:
    if (path / "manifest.json").is_file():
        try:
            stage = json.loads((path / "manifest.json").read_text())["stage"]
        except (OSError, ValueError, KeyError, TypeError):
            return "bundle"  # a damaged manifest is still a row; its worker says what is wrong with it
        if stage == "export":
            return "bundle"
    if (path / "config.json").is_file():
        return "checkpoint"
    raise InputError(
        f"{path}: neither a bundle (manifest.json of edgetune export) nor a checkpoint (config.json)",
        hint="edgetune eval and bench take what edgetune merge or edgetune export wrote",
    )
