"""`edgetune eval export`: answers of an evaluation in the files of another evaluation suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb


@verb(writes=True)
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["coco", "evalscope", "vlmevalkit"]),
    required=True,
    help="Whose files to write.",
)
@click.option("--name", default="exam", help="What the data set is called there.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write them to.")
def export(console: Console, results: Path, form: str, name: str, output: Path, force: bool, dry_run: bool) -> None:
    """Write the answers in RESULTS, a folder of eval or bench, in the files of another evaluation suite."""
    from edgetune_bench import exports
    from edgetune_bench.folder import measured_pictures, read_answers, read_results
    from edgetune_core.stage import run_stage
    from edgetune_runtime.errors import InputError

    found = read_results(results)
    answers = read_answers(results, found)
    if answers and form in exports.WITH_PICTURES and not measured_pictures(found, answers):
        raise InputError(
            f"{results}: the pictures that were measured are not on this machine, or were changed since",
            hint=f"export where they were measured: the files of {form} hold the pictures",
        )

    def build(folder: Path) -> dict[str, Any]:
        return {"left_out": exports.write(answers, folder, form, name=name)}

    settings = {"format": form, "name": name}
    inputs = {"results": results}
    done = run_stage("eval export", output, inputs=inputs, settings=settings, build=build, force=force, dry_run=dry_run)
    if dry_run:
        console.note(f"{output}: {'unchanged, would be kept' if done.skipped else 'would be written'}")
        return
    left_out = done.manifest["result"]["left_out"]
    for remark in left_out:
        console.note(f"left out: {remark}")
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    for file in files:
        console.line(str(output / file))
    console.result({"output": output, "files": files, "left_out": left_out})
