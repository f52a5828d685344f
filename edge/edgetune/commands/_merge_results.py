"""`edgetune bench merge`: results of several machines become one comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb


@verb(writes=True)
@click.argument("files", metavar="[MACHINE=]RESULTS...", nargs=-1, required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for results and the report.")
def merge(console: Console, files: tuple[str, ...], output: Path, force: bool, dry_run: bool) -> None:
    """Join results of the same records from several machines into one comparison with a report.

    RESULTS is a file of `edgetune-run bench`, or a folder of `edgetune bench`. MACHINE is what its rows are marked
    with; by default the name of the file or folder. All rows are compared with the one baseline that the results have.
    """
    from edgetune.commands._measure import counts, show_tables
    from edgetune_bench import folder, merging
    from edgetune_core.stage import run_stage

    sources = merging.label(files)

    def build(work: Path) -> dict[str, Any]:
        results, answers, pictures = merging.merge(sources)
        folder.write(work, results, answers, report=True, pictures=pictures)
        return counts(results)

    done = run_stage(
        "bench",
        output,
        inputs={f"results of {name}": path for name, path in sources.items()},
        settings={"merged": list(sources)},
        build=build,
        force=force,
        dry_run=dry_run,
    )
    if dry_run:
        console.note(f"{output}: {'unchanged, would be kept' if done.skipped else 'would be written'}")
        return
    results = folder.read_results(output)
    show_tables(console, results, output)
    console.result(results.to_dict())
