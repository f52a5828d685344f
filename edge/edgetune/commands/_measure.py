"""What `bench` and `eval` print alike."""

from __future__ import annotations

from edgetune.api.measure import Measurement
from edgetune.commands._common import Console


def say_state(console: Console, measured: Measurement) -> None:
    """Say what a dry run would do, or that an earlier result was kept."""
    stage = measured.stage
    if stage is None:
        if measured.results is None:
            console.note(f"would run {', '.join(measured.names)} and write nothing")
    elif stage.dry_run:
        console.note(f"{stage.folder}: {'unchanged, would be kept' if stage.skipped else 'would be written'}")
    elif stage.skipped:
        console.note(f"{stage.folder}: nothing has changed, kept (--force builds it again)")


def say_tables(console: Console, measured: Measurement) -> None:
    """Print accuracies, costs, remarks and where the report is."""
    from edgetune_bench import folder, table

    assert measured.results is not None and measured.stage is not None
    rows, output = measured.results.rows, measured.stage.folder
    console.table(table.accuracy_table(rows))
    console.line()
    console.table(table.cost_table(rows))
    for remark in table.remarks(rows):
        console.line(remark)
    console.note(f"report: {output / folder.REPORT}; next: edgetune gate {output} --min METRIC=PERCENT")
