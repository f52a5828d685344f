"""`edgetune gate`: decide by exit code whether measured rows are good enough to ship."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, verb
from edgetune_runtime.errors import GateFailed, GateInconclusive

if TYPE_CHECKING:
    from edgetune_bench.gate import Check

_DROPS = ("acc@0.5", "acc@0.75", "acc@0.9", "miou", "vqa", "box-iou")
_FLOORS = (*_DROPS, "refusal-recall", "refusal-precision", "valid-box", "anls")


class _Limit(click.FloatRange):
    """A finite number from 0 on: NaN is over no limit, and so is nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _Floor(click.ParamType[tuple[str, float]]):
    """METRIC=PERCENT."""

    name = "floor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        metric, equals, percent = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not METRIC=PERCENT, such as acc@0.5=80.", param, ctx)
        known: str = click.Choice(_FLOORS).convert(metric, param, ctx)
        return known, _Limit(0, 100).convert(percent, param, ctx)


_LIMIT = _Limit(min=0)


@verb()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Row to check; all but the baseline unless given.")
@click.option(
    "--min",
    "floors",
    multiple=True,
    type=_Floor(),
    metavar="METRIC=PERCENT",
    help=f"Least value of an accuracy, such as acc@0.5=80; repeatable. METRIC is one of {', '.join(_FLOORS)}.",
)
@click.option("--max-drop", type=_LIMIT, help="Largest drop of each --metric against the baseline, in points.")
@click.option(
    "--metric", "metrics", multiple=True, type=click.Choice(_DROPS), help="Metric limited by --max-drop.  [acc@0.5]"
)
@click.option("--max-p50-ms", type=_LIMIT, help="Largest median time of an answer.")
@click.option("--max-p95-ms", type=_LIMIT, help="Largest 95th-percentile time of an answer.")
@click.option("--max-size-mb", type=_LIMIT, help="Largest size of the folder, in 10^6 bytes.")
@click.option("--max-memory-mb", type=_LIMIT, help="Largest resident memory of the process.")
@click.option("--max-gpu-mb", type=_LIMIT, help="Largest growth of the GPU's used memory.")
@click.option("--max-cold-start-s", type=_LIMIT, help="Longest time from process start to first answer.")
@click.option("--allow-inconclusive", is_flag=True, help="Pass inconclusive checks; set --min as well.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write the checks as JUnit XML.")
def command(
    console: Console,
    results: Path,
    rows: tuple[str, ...],
    floors: tuple[tuple[str, float], ...],
    max_drop: float | None,
    metrics: tuple[str, ...],
    allow_inconclusive: bool,
    junit: Path | None,
    **limits: float | None,
) -> None:
    """Hold the rows of a measurement to limits: accuracy, accuracy lost, time, size, memory.

    RESULTS is a folder of `edgetune bench`, its results.json, or a file of `edgetune-run bench`.
    Exit codes: 0 all good, 1 a limit is broken or a row failed, 4 not enough records to tell.
    """
    budgets = {key.removeprefix("max_"): limit for key, limit in limits.items() if limit is not None}
    if metrics and max_drop is None:
        raise click.UsageError("--metric needs --max-drop, the points that it may lose")
    if max_drop is None and not floors and not budgets:
        raise click.UsageError("Give at least one limit, such as --min acc@0.5=80, --max-drop 1.0 or --max-p95-ms 80.")
    twice = [metric for metric, _ in floors if [name for name, _ in floors].count(metric) > 1]
    if twice:
        raise click.UsageError(f"--min {twice[0]} is given twice.")

    from edgetune_bench.folder import read_results
    from edgetune_bench.gate import check_rows, worst
    from edgetune_bench.junit import junit_xml
    from edgetune_runtime.files import write_whole

    measured = read_results(results)
    checks = check_rows(
        measured,
        rows=rows,
        max_drop=max_drop,
        metrics=tuple(dict.fromkeys(metrics)) or ("acc@0.5",),
        floors=dict(floors),
        budgets=budgets,
    )
    if junit is not None:
        text = junit_xml(checks, created=measured.created, allow_inconclusive=allow_inconclusive)
        write_whole(junit, text)
    outcome = worst(checks)
    console.table([_line(check) for check in checks])
    console.result({"outcome": outcome, "checks": [check.to_dict() for check in checks]})
    if outcome == "fail":
        raise GateFailed(_sum_up([check for check in checks if check.outcome == "fail"], len(checks), "failed"))
    if outcome == "inconclusive" and not allow_inconclusive:
        open_ = [check for check in checks if check.outcome == "inconclusive"]
        raise GateInconclusive(
            _sum_up(open_, len(checks), "could not tell"),
            hint="measure more records, allow a larger drop, or accept the doubt with --allow-inconclusive",
        )


def _line(check: Check) -> dict[str, object]:
    return {
        "row": check.row,
        "check": check.name,
        "measured": check.figure,
        "allowed": _allowed(check),
        "outcome": check.outcome,
        "remark": check.remark or None,
    }


def _allowed(check: Check) -> str | None:
    limits = {"at most": check.limit, "at least": check.floor}
    return next((f"{words} {limit:g}" for words, limit in limits.items() if limit is not None), None)


def _sum_up(checks: list[Check], count: int, what: str) -> str:
    names = "; ".join(f"{check.row}, {check.name}: {check.remark}" for check in checks)
    return f"{len(checks)} of {count} checks {what}: {names}"
