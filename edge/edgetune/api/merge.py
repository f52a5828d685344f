"""`edgetune.merge`: a LoRA adapter folded into its base."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import StageResult, run_stage

log = logging.getLogger("edgetune")


@dataclass(frozen=True, kw_only=True)
class MergeOptions(StageOptions):
    """Options of `edgetune.merge`.

    Examples:
        >>> from edgetune import MergeOptions
        >>> options = MergeOptions(checkpoint="base", adapter="runs/adapter", output="runs/merged", dry_run=True)
        >>> options.allow_other_base, options.dry_run
        (False, True)
    """

    checkpoint: Path = option(help="Hugging Face folder of the base model.")
    adapter: Path = option(
        help="Folder of the LoRA adapter, from edgetune train or another tool that writes peft's format."
    )
    output: Path = option(help="Folder to write the merged checkpoint to.")
    allow_other_base: bool = option(False, help="Accept a base other than the one that the adapter was trained on.")


@takes(MergeOptions)
def merge(options: MergeOptions) -> StageResult:
    """Fold a LoRA adapter into its base and prove that it worked.

    The result has the base's tensor names and dtypes, and is refused if it does not answer as the adapter does.

    Raises:
        InputError: the adapter does not fit the base.
        ParityError: the merged checkpoint does not answer as the adapter does.
    """
    from edgetune_core.adapter import Adapter
    from edgetune_core.checkpoint import HubCheckpoint
    from edgetune_train.merge import merge as build

    base = HubCheckpoint.open(options.checkpoint)
    if base.spec.remark:
        log.info(base.spec.remark)
    lora = Adapter.of(base, options.adapter, allow_other_base=options.allow_other_base)
    return run_stage(
        "merge",
        options.output,
        inputs={"checkpoint": options.checkpoint, "adapter": options.adapter},
        settings={"allow_other_base": options.allow_other_base},
        build=lambda folder: build(base, lora, folder),
        force=options.force,
        dry_run=options.dry_run,
    )
