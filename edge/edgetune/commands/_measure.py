"""What `bench`, `eval` and `demo` print alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.api.measure import Measurement
from edgetune.commands._common import Console
from edgetune_core.stage import StageResult

if TYPE_CHECKING:
    from edgetune_runtime.bench.results import Results


def say_plan(console: Console, stage: StageResult) -> None:
    """Say what a dry run would do with its folder."""
    console.note(f"{stage.folder}: {'unchanged, would be kept' if stage.skipped else 'would be written'}")


def say_state(console: Console, measured: Measurement) -> None:
    """Say what a dry run would do, or that an earlier result was kept."""
    stage = measured.stage
    if stage is None:
        if measured.results is None:
            console.note(f"would run {', '.join(measured.names)} and write nothing")
    elif stage.dry_run:
        say_plan(console, stage)
    elif stage.skipped:
        console.note(f"{stage.folder}: nothing has changed, kept (--force builds it again)")


def say_shard(console: Console, results: Results) -> None:
    """Say of the results of a shard that they are a part."""
    if results.shard_remark:
        console.note(results.shard_remark)


def say_tables(console: Console, results: Results) -> None:
    """Print accuracies, costs and remarks."""
    from edgetune_bench import table

    console.table(table.accuracy_table(results.rows))
    console.line()
    console.table(table.cost_table(results.rows))
    if bounds := table.curve_table(results.rows):
        console.line()
        console.table(bounds)
    for remark in table.remarks(results.rows):
        console.line(remark)
