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
    import json

    from edgetune.commands._measure import show_tables
    from edgetune_bench import folder, merging
    from edgetune_core.stage import run_stage
    from edgetune_runtime.bench.plan import failures

    sources = merging.label(files)

    def build(work: Path) -> dict[str, Any]:
        results, answers = merging.merge(sources)
        folder.write(work, results, answers, report=True)
        return {"rows": len(results["rows"]), "failed": failures(results)}

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
    results = json.loads((output / folder.RESULTS).read_text(encoding="utf-8"))
    show_tables(console, results, output)
    console.result(results)
