"""`edgetune bench`: compare bundles and checkpoints on the same records, one process each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._merge_results import merge

if TYPE_CHECKING:
    from edgetune_runtime.bench.results import Results


@verb(writes=True, subcommands={"merge": merge})
@click.argument("targets", metavar="[NAME=]TARGET...", nargs=-1, required=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Records with their answers, in any format that data convert reads.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder for results, predictions and the report.")
@click.option("--report", type=click.Path(path_type=Path), help="Another name for --output.")
@click.option(
    "--baseline",
    metavar="[NAME=]TARGET",
    help="The checkpoint (or bundle) that the others are compared with; unless given, the only checkpoint named.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N records.")
@click.option("--rounds", type=click.IntRange(min=1), default=1, help="Deal the records out and take turns N times.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, help="Unmeasured answers before the measured ones.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the models run.")
@click.option("--engine", help="An installed engine that runs the bundles, in place of the runtime's own.")
@click.option("--threads", type=int, help="CPU threads; by default all usable cores, on CUDA the engine's own choice.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, help="Longest answer, in tokens.")
@click.option("--stall", type=click.FloatRange(min=1), default=600, help="Stop a row that is silent for so many s.")
@click.option("--pictures", type=click.IntRange(min=1), help="Draw N answers of all rows beside the truth.")
def command(
    console: Console,
    targets: tuple[str, ...],
    data: Path,
    output: Path | None,
    report: Path | None,
    baseline: str | None,
    limit: int | None,
    rounds: int,
    warmup: int,
    device: str,
    engine: str | None,
    threads: int | None,
    max_new_tokens: int,
    stall: float,
    pictures: int | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Compare bundles and checkpoints: accuracy, speed by stage, memory and size.

    `edgetune bench merge A.json B.json --output DIR` joins results from several machines.
    """
    folder = output or report
    if folder is None or (output and report):
        raise click.UsageError("Give one of --output and --report, the folder for everything that is written.")

    from edgetune.commands._measure import run_study, show_tables
    from edgetune_bench.study import prepare
    from edgetune_bench.targets import identify
    from edgetune_data.read import canonical_file, stage_inputs
    from edgetune_runtime.bench.results import Options
    from edgetune_runtime.bench.targets import parse

    options = Options(limit, device, threads, warmup, rounds, max_new_tokens, stall)
    known = partial(identify, engine=engine)
    study = prepare(
        [parse(target, known) for target in targets],
        canonical_file(data),
        options=options,
        made_from=stage_inputs("data", data),
        baseline=parse(baseline, known) if baseline else None,
        pictures=pictures or 0,
        report=True,
    )

    def show(results: Results) -> None:
        show_tables(console, results, folder)

    run_study(console, "bench", study, output=folder, force=force, dry_run=dry_run, show=show)
