"""`edgetune.train`: a LoRA adapter from a checkpoint and records, in one training or in the stages of a curriculum."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_core.option_files import read_options
from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import StageResult
from edgetune_runtime.errors import InputError
from edgetune_train.settings import TrainSettings

if TYPE_CHECKING:
    from edgetune_runtime.records import AnyRecord

log = logging.getLogger("edgetune")

_SAME = "all stages train the same adapter, give it on the command line"
_WHOLE = "it is about all stages, give it on the command line"
_APART = {
    **dict.fromkeys(("rank", "alpha", "rslora", "dora", "targets", "vision_lora", "unfreeze"), _SAME),
    **dict.fromkeys(("checkpoint", "output", "stages", "force", "dry_run"), _WHOLE),
    **dict.fromkeys(("allow_overlap", "allow_text_boxes"), _WHOLE),
}


@dataclass(frozen=True, kw_only=True)
class _Places(StageOptions):
    checkpoint: Path = option(help="Hugging Face folder of the base model.")
    data: Path | None = option(None, help="Training records, in any format that data convert reads.")
    val: Path | None = option(
        None, help="Records that are scored after each epoch, in any format that data convert reads."
    )
    output: Path = option(help="Folder to write the adapter to.")
    limit: int | None = option(None, help="Train on the first N records only.", minimum=1)
    stages: tuple[str, ...] = option(
        (),
        help="Files of options (YAML or TOML) with commas between them: one training after the other, each "
        "from the adapter before it. Options in a file override the command line.",
        flag="--stage",
        metavar="FILES",
    )
    allow_overlap: bool = option(False, help="Accept validation records whose pictures are also trained on.")
    allow_text_boxes: bool = option(
        False,
        help="Train on boxes that are written as text in answers, in the coordinates they are written in; "
        "refused unless given.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainSettings, _Places):
    """Options of `edgetune.train`.

    Examples:
        >>> from edgetune import TrainOptions
        >>> options = TrainOptions(checkpoint="base", data="train.jsonl", output="runs/adapter", epochs=2, rank=8)
        >>> options.epochs, options.rank, options.alpha
        (2.0, 8, 32)
        >>> TrainOptions(checkpoint="base", data="train.jsonl", output="runs/adapter", epochs=-1)
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --epochs: -1.0 must be above 0
    """


@takes(TrainOptions)
def train(options: TrainOptions) -> StageResult:
    """Fine-tune a checkpoint on your records with LoRA.

    Started again, an interrupted run goes on from its last resume point. Under `torchrun` or `accelerate launch` all
    processes train, and the first one writes the folder.

    Raises:
        InputError: the checkpoint, a record or a setting cannot be used, or validation images are trained on.
        MissingDependency: a library that a setting needs is not installed.
    """
    from edgetune_core.checkpoint import HubCheckpoint
    from edgetune_data.text_boxes import refuse
    from edgetune_train.arguments import parse_trainer_args
    from edgetune_train.inputs import check_disjoint, image_hashes, tree_hash
    from edgetune_train.launch import run_stage_together
    from edgetune_train.stages import Stage, train_stages
    from edgetune_train.train import train as train_one

    plans = _plans(replace(options, trainer_args=parse_trainer_args(options.trainer_args)))
    base = HubCheckpoint.open(options.checkpoint)
    base.check_template()
    if base.spec.remark:
        log.info(base.spec.remark)
    parts = [Stage(plan.name, *plan.load(), plan.settings) for plan in plans]
    if not options.allow_text_boxes:
        for part in parts:
            refuse(part.records)

    def build(folder: Path) -> dict[str, Any]:
        if options.stages:
            return train_stages(base, parts, folder)
        return train_one(base, parts[0].records, parts[0].val, parts[0].settings, folder)

    def chosen() -> dict[str, Any]:
        images = image_hashes([record for part in parts for record in (*part.records, *part.val)])
        for number, part in enumerate(parts, start=1):
            if part.val and not options.allow_overlap:
                remark = check_disjoint([record for before in parts[:number] for record in before.records], part.val)
                if remark:
                    log.info(remark)
        named = {}
        for plan, part in zip(plans, parts, strict=True):
            seen = {path: images[path] for record in (*part.records, *part.val) for path in record.images}
            named[plan.name] = plan.settings.to_dict() | {"limit": plan.limit, "images_sha256": tree_hash(seen)}
        return {"stages": named} if options.stages else named[plans[0].name]

    inputs = {role: path for plan in plans for role, path in plan.inputs().items()}
    done = run_stage_together(
        "train",
        options.output,
        inputs={"checkpoint": options.checkpoint, **inputs},
        settings=chosen,
        build=build,
        seed=plans[0].settings.seed,
        force=options.force,
        dry_run=options.dry_run,
    )
    return replace(done, facts={"records": sum(len(part.records) for part in parts)})


@dataclass(frozen=True)
class _Training:
    """One training.

    Attributes:
        name: of the stage, empty for a training without stages.
        data: the training records.
        val: held-out records.
        limit: train on the first N records.
        settings: everything else.
    """

    name: str
    data: Path
    val: Path | None
    limit: int | None
    settings: TrainSettings

    def inputs(self) -> dict[str, Path]:
        """Return the files that the training depends on, by role."""
        from edgetune_data.read import stage_inputs

        found = stage_inputs("data", self.data) | (stage_inputs("val", self.val) if self.val else {})
        return {f"{self.name} {role}".strip(): path for role, path in found.items()}

    def load(self) -> tuple[list[AnyRecord], list[AnyRecord]]:
        """Return the training and the held-out records.

        Raises:
            InputError: the first bad one, by file and line.
        """
        from edgetune_data.read import load

        return load(self.data)[: self.limit], load(self.val) if self.val else []


def _plans(options: TrainOptions) -> list[_Training]:
    """Return the trainings that are asked for, in sequence.

    Raises:
        InputError: a file does not hold options, two stages have one name, or a training has no data.
    """
    paths = [Path(part.strip()) for text in options.stages for part in text.split(",") if part.strip()]
    if not paths:
        return [_plan("", options, "--data: no training records")]
    plans: list[_Training] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file (a stage of train)")
        if path.stem in [plan.name for plan in plans]:
            raise InputError(f"{path}: there is a stage {path.stem!r} before it", hint="rename one of the files")
        found = read_options(path, TrainOptions, _APART)
        if "trainer_args" in found:
            from edgetune_train.arguments import parse_trainer_args

            found["trainer_args"] = parse_trainer_args(found["trainer_args"])
        plans.append(_plan(path.stem, replace(options, **found), f"{path}: needs 'data'"))
    return plans


def _plan(name: str, options: TrainOptions, problem: str) -> _Training:
    if options.data is None:
        raise InputError(problem, hint="give a file of records")
    return _Training(name, options.data, options.val, options.limit, options.narrow(TrainSettings))
