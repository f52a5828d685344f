"""`edgetune eval`: score one bundle or checkpoint on held-out records."""

from __future__ import annotations

from typing import Any

from edgetune.api.evaluate import evaluate, export_answers
from edgetune.commands._common import Console, verb
from edgetune.commands._measure import say_plan, say_shard, say_state


@verb(export_answers)
def export(console: Console, **options: Any) -> None:
    stage = export_answers(**options)
    if stage.dry_run:
        say_plan(console, stage)
        return
    left_out = stage.facts["left_out"]
    for remark in left_out:
        console.note(f"left out: {remark}")
    files = sorted(str(path.relative_to(stage.folder)) for path in stage.folder.rglob("*") if path.is_file())
    for file in files:
        console.line(str(stage.folder / file))
    console.result({"output": stage.folder, "files": files, "left_out": left_out})


@verb(evaluate, subcommands={"export": export})
def command(console: Console, **options: Any) -> None:
    from edgetune_bench import table

    measured = evaluate(**options)
    say_state(console, measured)
    if measured.results is not None:
        console.table(table.accuracy_table(measured.results.rows))
        for remark in table.remarks(measured.results.rows):
            console.line(remark)
        if measured.stage is not None:
            console.note(f"results: {measured.stage.folder}")
        say_shard(console, measured.results)
        console.result(measured.results.to_dict())
        measured.raise_for_failures()
