"""`edgetune.grpo`: an adapter trained further on its own answers, rewarded for their boxes."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import StageResult
from edgetune_runtime.errors import InputError
from edgetune_train.settings import GrpoSettings

log = logging.getLogger("edgetune")


@dataclass(frozen=True, kw_only=True)
class _Places(StageOptions):
    checkpoint: Path = option(help="Hugging Face folder of the base model.")
    adapter: Path | None = option(
        None, help="Adapter to start from, as edgetune train writes it; a new one unless given."
    )
    data: Path = option(help="Training records, in any format that data convert reads.")
    val: Path | None = option(
        None, help="Records that are scored after each epoch, in any format that data convert reads."
    )
    output: Path = option(help="Folder to write the adapter to.")
    limit: int | None = option(None, help="Train on the first N records only.", minimum=1)
    allow_overlap: bool = option(False, help="Accept validation records whose pictures are also trained on.")
    allow_text_boxes: bool = option(
        False,
        help="Train on boxes that are written as text in answers, in the coordinates they are written in; "
        "refused unless given.",
    )


@dataclass(frozen=True, kw_only=True)
class GrpoOptions(GrpoSettings, _Places):
    """Options of `edgetune.grpo`.

    Examples:
        >>> from edgetune import GrpoOptions
        >>> options = GrpoOptions(checkpoint="base", adapter="runs/adapter", data="train.jsonl", output="runs/grpo")
        >>> options.generations, options.epochs
        (8, 1.0)
        >>> GrpoOptions(checkpoint="base", adapter="runs/adapter", data="train.jsonl", output="runs/grpo", rank=8)
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --rank: the adapter to start from has its own
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter and self.shape:
            raise InputError(
                f"--{next(iter(self.shape)).removesuffix('s')}: the adapter to start from has its own",
                hint="leave it out, or leave out --adapter",
            )


@takes(GrpoOptions)
def grpo(options: GrpoOptions) -> StageResult:
    """Train an adapter on its own sampled answers and what their boxes earn (GRPO, through TRL).

    Started again, an interrupted run goes on from its last resume point.

    Raises:
        InputError: the checkpoint, a record or a setting cannot be used, or validation images are trained on.
    """
    from edgetune_core.adapter import Adapter
    from edgetune_core.checkpoint import HubCheckpoint
    from edgetune_data.read import load, stage_inputs
    from edgetune_data.text_boxes import refuse
    from edgetune_runtime.records import scored
    from edgetune_train.grpo import grpo as train
    from edgetune_train.grpo_arguments import parse_grpo_args
    from edgetune_train.inputs import check_disjoint, image_hashes, tree_hash
    from edgetune_train.launch import run_stage_together

    settings = replace(options.narrow(GrpoSettings), trainer_args=parse_grpo_args(options.trainer_args))
    base = HubCheckpoint.open(options.checkpoint)
    base.check_template()
    start = Adapter.of(base, options.adapter) if options.adapter else None
    records = scored(load(options.data), options.data)[: options.limit]
    val_records = scored(load(options.val), options.val) if options.val else []
    if not options.allow_text_boxes:
        refuse(records)

    inputs = {"checkpoint": options.checkpoint} | ({"adapter": options.adapter} if options.adapter else {})
    inputs |= stage_inputs("data", options.data) | (stage_inputs("val", options.val) if options.val else {})

    def chosen() -> dict[str, Any]:
        images = image_hashes([*records, *val_records])
        if val_records and not options.allow_overlap:
            remark = check_disjoint(records, val_records)
            if remark:
                log.info(remark)
        shape = None if start else asdict(settings.lora)
        return settings.to_dict() | {"lora": shape, "limit": options.limit, "images_sha256": tree_hash(images)}

    done = run_stage_together(
        "grpo",
        options.output,
        inputs=inputs,
        settings=chosen,
        build=lambda folder: train(base, start, records, val_records, settings, folder),
        seed=settings.seed,
        force=options.force,
        dry_run=options.dry_run,
    )
    return replace(done, facts={"records": len(records)})
