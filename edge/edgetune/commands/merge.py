"""`edgetune merge`: a LoRA adapter folded into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb
from edgetune_core.stage import run_stage


@verb(writes=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Hugging Face folder of the base.")
@click.option("--adapter", type=click.Path(path_type=Path), required=True, help="Folder of a peft LoRA adapter.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write the checkpoint to.")
@click.option("--allow-other-base", is_flag=True, help="Accept another base than the trained one.")
def command(
    console: Console,
    checkpoint: Path,
    adapter: Path,
    output: Path,
    allow_other_base: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Fold a LoRA adapter into its base and prove that it worked.

    The result has the base's tensor names and dtypes, and is refused if it does not answer as the adapter does.
    """
    from edgetune_train.adapter import Adapter
    from edgetune_train.checkpoint import Checkpoint
    from edgetune_train.merge import merge

    base = Checkpoint.open(checkpoint)
    if base.spec.remark:
        console.note(base.spec.remark)
    lora = Adapter.open(adapter)
    lora.check_base(base, allow_other_base=allow_other_base)

    def build(folder: Path) -> dict[str, Any]:
        return merge(base, lora, folder)

    stage = run_stage(
        "merge",
        output,
        inputs={"checkpoint": checkpoint, "adapter": adapter},
        settings={"allow_other_base": allow_other_base},
        build=build,
        force=force,
        dry_run=dry_run,
    )
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
    elif dry_run:
        console.line(f"{stage.folder}: would merge {adapter} into {checkpoint}")
    else:
        result = stage.manifest["result"]
        proof = result["proof"]
        console.line(
            f"{stage.folder}: {result['changed_tensors']} tensors changed, {result['dtype']}; on "
            f"{proof['prompts']} prompts the adapter moves logits by {proof['effect']:.3g}, the merged one is off by "
            f"{proof['written_error']:.1%} of that and agrees on {proof['same_token']:.1%} of the next tokens"
        )
