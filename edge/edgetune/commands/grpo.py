"""`edgetune grpo`: an adapter trained further on its own answers, rewarded for their boxes."""

from __future__ import annotations

from typing import Any

from edgetune.api.grpo import GrpoOptions, grpo
from edgetune.commands._common import Console, main_process, verb
from edgetune_core.stage import StageResult


@verb(GrpoOptions)
def command(console: Console, **options: Any) -> None:
    """Train an adapter on its own sampled answers and what their boxes earn (GRPO, through TRL).

    The same command continues an interrupted run from its last resume point.
    """
    stage = grpo(**options)
    if main_process():
        _report(console, stage)
        if not stage.dry_run:
            paths = ("--checkpoint", options["checkpoint"], "--adapter", stage.folder)
            console.next_verb("merge", *paths, "--output", "MERGED")


def _report(console: Console, stage: StageResult) -> None:
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": stage.dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
        return
    if stage.dry_run:
        console.line(f"{stage.folder}: would train on {stage.facts['records']} records")
        return
    result = stage.manifest["result"]
    names = {"epoch": "epoch", "acc50": "Acc@0.5", "miou": "mIoU", "refusal_accuracy": "refused"}
    console.table([{title: row.get(key) for key, title in names.items()} for row in result["validation"]])
    earned = ", ".join(
        f"{name} {mean['first']:.3f} to {mean['last']:.3f}" for name, mean in result["rewards"].items() if mean
    )
    console.line(
        f"{stage.folder}: {result['steps']} steps, rewards: {earned} ({result['trained_parameters']:,} parameters, "
        f"{result['precision']}), {result['samples_per_second']:.1f} records/s"
    )
