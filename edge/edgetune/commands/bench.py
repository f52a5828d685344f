"""`edgetune bench`: compare bundles and checkpoints on the same records, one process each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb


@verb(writes=True)
@click.argument("targets", metavar="[NAME=]TARGET...", nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="JSONL of records with their answers.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for results and predictions.")
@click.option(
    "--baseline",
    metavar="[NAME=]TARGET",
    help="The checkpoint (or bundle) that the others are compared with; unless given, the only checkpoint named.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N records.")
@click.option("--rounds", type=click.IntRange(min=1), default=1, help="Deal the records out and take turns N times.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, help="Unmeasured answers before the measured ones.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the models run.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all usable cores unless given.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, help="Longest answer, in tokens.")
@click.option("--stall", type=click.FloatRange(min=1), default=600, help="Stop a row that is silent for so many s.")
@click.option("--pictures", type=click.IntRange(min=1), help="Draw N answers of all rows beside the truth.")
def command(
    console: Console,
    targets: tuple[str, ...],
    data: Path,
    output: Path,
    baseline: str | None,
    limit: int | None,
    rounds: int,
    warmup: int,
    device: str,
    threads: int | None,
    max_new_tokens: int,
    stall: float,
    pictures: int | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Compare bundles and checkpoints: accuracy, speed by stage, memory and size."""
    from edgetune.commands._measure import run_study
    from edgetune_bench import table
    from edgetune_bench.machine import usable_cores
    from edgetune_bench.matrix import Options
    from edgetune_bench.study import prepare
    from edgetune_bench.targets import parse

    options = Options(limit, device, threads or usable_cores(), warmup, rounds, max_new_tokens, stall)
    study = prepare(
        [parse(target) for target in targets],
        data,
        options=options,
        baseline=parse(baseline) if baseline else None,
        pictures=pictures or 0,
    )

    def show(results: Mapping[str, Any]) -> None:
        console.table(table.accuracy_table(results["rows"]))
        console.line()
        console.table(table.cost_table(results["rows"]))
        for remark in table.remarks(results["rows"]):
            console.line(remark)

    run_study(console, "bench", study, output=output, force=force, dry_run=dry_run, show=show)
