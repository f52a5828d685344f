"""`edgetune bench`: compare bundles and checkpoints on the same records, one process each."""

from __future__ import annotations

from typing import Any

from edgetune.api.bench import bench, merge_results
from edgetune.api.measure import Measurement
from edgetune.commands._common import Console, verb
from edgetune.commands._measure import say_shard, say_state, say_tables


@verb(merge_results)
def merge(console: Console, **options: Any) -> None:
    """Join shards into the results of the whole set, or those of several machines into one comparison with a report.

    RESULTS is a file of `edgetune-run bench`, or a folder of `edgetune bench` or `eval`. MACHINE is what its rows are
    marked with; by default the name of the file or folder. All rows are compared with the one baseline that the results
    have. Shards (`--shard`) of one run are joined first; where there are those of several machines, MACHINE tells them
    apart.
    """
    _say(console, merge_results(**options))


@verb(bench, subcommands={"merge": merge})
def command(console: Console, **options: Any) -> None:
    """Compare bundles and checkpoints: accuracy, speed by stage, memory and size.

    `edgetune bench merge A.json B.json --output DIR` joins results from several machines, or the shards of a run.
    """
    measured = bench(**options)
    _say(console, measured)
    measured.raise_for_failures()


def _say(console: Console, measured: Measurement) -> None:
    """Print tables, remarks and where the report is; after a dry run, what would be done."""
    from edgetune_bench.folder import REPORT

    say_state(console, measured)
    if measured.results is not None and measured.stage is not None:
        say_tables(console, measured.results)
        output = measured.stage.folder
        after = "" if measured.results.shard else f"; next: edgetune gate {output} --min METRIC=PERCENT"
        console.note(f"report: {output / REPORT}{after}")
        say_shard(console, measured.results)
        console.result(measured.results.to_dict())
