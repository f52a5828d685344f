"""`edgetune grpo`: an adapter trained further on its own answers, rewarded for their boxes."""

from __future__ import annotations

from typing import Any

from edgetune.api.grpo import grpo
from edgetune.commands._common import Console, verb
from edgetune_core.stage import StageResult


@verb(grpo)
def command(console: Console, **options: Any) -> None:
    stage = grpo(**options)
    if not stage.manifest:  # the first process of a launch speaks for all
        return
    if console.stage(stage, f"train on {stage.facts['records']} records"):
        _report(console, stage)
    if not stage.dry_run:
        paths = ("--checkpoint", options["checkpoint"], "--adapter", stage.folder)
        console.next_verb("merge", *paths, "--output", "MERGED")


def _report(console: Console, stage: StageResult) -> None:
    result = stage.result
    names = {"epoch": "epoch", "acc50": "Acc@0.5", "miou": "mIoU", "refusal_accuracy": "refused"}
    console.table([{title: row.get(key) for key, title in names.items()} for row in result["validation"]])
    earned = ", ".join(
        f"{name} {mean['first']:.3f} to {mean['last']:.3f}" for name, mean in result["rewards"].items() if mean
    )
    console.line(
        f"{stage.folder}: {result['steps']} steps, rewards: {earned} ({result['trained_parameters']:,} parameters, "
        f"{result['precision']}), {result['samples_per_second']:.1f} records/s"
    )
