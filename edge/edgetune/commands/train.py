"""`edgetune train`: a LoRA adapter from a checkpoint and records."""

from __future__ import annotations

from typing import Any

from edgetune.api.train import train
from edgetune.commands._common import Console, verb
from edgetune_core.stage import StageResult


@verb(train)
def command(console: Console, **options: Any) -> None:
    stage = train(**options)
    if not stage.manifest:  # the first process of a launch speaks for all
        return
    if console.stage(stage, f"train on {stage.facts['records']} records"):
        _report(console, stage)
    if not stage.dry_run:
        paths = ("--checkpoint", options["checkpoint"], "--adapter", stage.folder)
        console.next_verb("merge", *paths, "--output", "MERGED")


def _report(console: Console, stage: StageResult) -> None:
    trained = stage.result.get("stages", [stage.result])
    names = {"name": "stage"} if "stages" in stage.result else {}
    names |= {"epoch": "epoch", "loss": "loss", "acc50": "Acc@0.5", "miou": "mIoU", "refusal_accuracy": "refused"}
    rows = [{"name": part.get("name"), **row} for part in trained for row in part["validation"]]
    console.table([{title: row.get(key) for key, title in names.items()} for row in rows])
    for part in trained:
        loss, used = part["loss"], part["token_utilization"]
        console.line(
            f"{stage.folder / part.get('name', '')}: {part['steps']} steps, loss {loss['first']:.3f} to "
            f"{loss['last']:.3f}, {part['adapted_layers']} layers adapted ({part['trained_parameters']:,} parameters, "
            f"{part['precision']}), {part['samples_per_second']:.1f} samples/s, {1 - used:.0%} of the computed "
            "positions are padding"
        )
