"""What `edgetune train` is asked to do: one training, or the stages of a curriculum from files of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._config import read_options
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_runtime.records import AnyRecord
    from edgetune_train.settings import TrainSettings

_SAME = "all stages train the same adapter, give it on the command line"
_WHOLE = "it is about all stages, give it on the command line"
# By the options' long names, as a file spells them.
_APART = {"rank": _SAME, "alpha": _SAME, "rslora": _SAME, "dora": _SAME, "target": _SAME} | {
    "vision-lora": _SAME, "unfreeze": _SAME, "checkpoint": _WHOLE, "output": _WHOLE, "stage": _WHOLE,
    "config": _WHOLE, "force": _WHOLE, "dry-run": _WHOLE, "json": _WHOLE,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        name: of the stage, empty for a training without stages.
        data: the training records.
        val: held-out records.
        limit: train on the first N records.
        settings: everything else.
        file: the stage's file.
    """

    name: str
    data: Path
    val: Path | None
    limit: int | None
    settings: TrainSettings
    file: Path | None = None

    def inputs(self) -> dict[str, Path]:
        """Return the files that the training depends on, by role."""
        from edgetune_data.read import stage_inputs

        found = stage_inputs("data", self.data) | (stage_inputs("val", self.val) if self.val else {})
        if self.file is None:
            return found
        return {f"{self.name} {role}": path for role, path in found.items()}

    def load(self) -> tuple[list[AnyRecord], list[AnyRecord]]:
        """Return the training and the held-out records.

        Raises:
            InputError: the first bad one, by file and line.
        """
        from edgetune_data.read import load

        return load(self.data)[: self.limit], load(self.val) if self.val else []

    def chosen(self) -> dict[str, Any]:
        """Return what decides the result besides the inputs, as JSON values."""
        return asdict(self.settings) | {"limit": self.limit}


def make_plans(ctx: click.Context, options: Mapping[str, Any], files: Sequence[str]) -> list[Plan]:
    """Return the trainings that are asked for, in sequence.

    Args:
        ctx: of the verb.
        options: the command line's.
        files: the stages' files, by commas; what a file says goes before the command line.

    Raises:
        InputError: a file does not hold options, or two stages have one name.
        click.UsageError: a training has no data.
    """
    paths = [Path(part.strip()) for text in files for part in text.split(",") if part.strip()]
    if not paths:
        return [_plan("", options, None)]
    plans: list[Plan] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file (a stage of train)")
        if path.stem in [plan.name for plan in plans]:
            raise InputError(f"{path}: there is a stage {path.stem!r} before it", hint="rename one of the files")
        plans.append(_plan(path.stem, {**options, **read_options(ctx, path, _APART)}, path))
    return plans


def _plan(name: str, options: Mapping[str, Any], file: Path | None) -> Plan:
    rest = dict(options)
    data, val, limit = rest.pop("data"), rest.pop("val"), rest.pop("limit")
    if data is None:
        raise click.UsageError(f"{file}: needs 'data'" if file else "Missing option '--data'.")
    return Plan(name, data, val, limit, _settings(rest), file)


def _settings(options: dict[str, Any]) -> TrainSettings:
    """Return the training's settings from the options of the same names."""
    from edgetune_train.lora import LoraSettings
    from edgetune_train.settings import TrainSettings, parse_trainer_args

    shape = {name: options.pop(name) for name in ("rank", "alpha", "dropout", "rslora", "dora", "targets")}
    lora = LoraSettings(**shape, vision=options.pop("vision_lora"))
    unfreeze = tuple((options.pop("unfreeze") or "").replace(",", " ").split())
    trainer_args = parse_trainer_args(options.pop("trainer_args"))
    return TrainSettings(lora=lora, unfreeze=unfreeze, trainer_args=trainer_args, **options)
