"""`edgetune eval`: score one bundle or checkpoint on held-out records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._eval_export import export

if TYPE_CHECKING:
    from edgetune_runtime.bench.results import Results


@verb(writes=True, subcommands={"export": export})
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Records with their answers, in any format that data convert reads.",
)
@click.option("--adapter", type=click.Path(path_type=Path), help="LoRA adapter to apply to the checkpoint.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for predictions and results.")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N records.")
@click.option("--pictures", type=click.IntRange(min=1), help="Draw N answers beside the truth (needs --output).")
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(["ap", "bleu", "cider"]),
    multiple=True,
    help="A further figure: COCO-style AP of boxes, BLEU or CIDEr-D of answers in words. Repeatable.",
)
@click.option("--gallery", type=click.Path(path_type=Path), help="HTML page of the worst answers, drawn.")
@click.option("--worst", type=click.IntRange(min=1), default=24, help="How many answers the gallery shows.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the model runs.")
@click.option("--threads", type=int, help="CPU threads; by default all usable cores, on CUDA the engine's own choice.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, help="Longest answer, in tokens.")
def command(
    console: Console,
    target: Path,
    data: Path,
    adapter: Path | None,
    output: Path | None,
    limit: int | None,
    pictures: int | None,
    metrics: tuple[str, ...],
    gallery: Path | None,
    worst: int,
    device: str,
    threads: int | None,
    max_new_tokens: int,
    force: bool,
    dry_run: bool,
) -> None:
    """Score a bundle, a checkpoint, or a checkpoint with an adapter on held-out records."""
    if pictures and output is None:
        raise click.UsageError("--pictures needs --output, the folder to draw into")

    from edgetune.commands._measure import run_study
    from edgetune_bench import table
    from edgetune_bench.study import GALLERY, prepare
    from edgetune_bench.targets import identify
    from edgetune_data.read import canonical_file, stage_inputs
    from edgetune_runtime.bench.results import Options

    options = Options(limit, device, threads, warmup=0, max_new_tokens=max_new_tokens)
    study = prepare(
        [identify(target, adapter=adapter)],
        canonical_file(data),
        options=options,
        made_from=stage_inputs("data", data),
        pictures=pictures or 0,
        metrics=tuple(dict.fromkeys(metrics)),
        worst=worst if output or gallery else 0,
    )

    def show(results: Results) -> None:
        console.table(table.accuracy_table(results.rows))
        for remark in table.remarks(results.rows):
            console.line(remark)
        if output is not None:
            console.note(f"results: {output}")

    copies = {} if gallery is None else {GALLERY: gallery}
    run_study(console, "eval", study, output=output, force=force, dry_run=dry_run, show=show, copies=copies)
