"""`edgetune tune-budget`: the smallest pictures with which a bundle is accurate enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetune.api.tune_budget import TunedBudget, tune_budget
from edgetune.commands._common import Console, verb
from edgetune.commands._measure import say_state

if TYPE_CHECKING:
    from edgetune_bench.budget import Tried
    from edgetune_runtime.bench.results import Measured


@verb(tune_budget)
def command(console: Console, **options: Any) -> None:
    """Find the smallest area of the resized pictures with which a bundle loses no more than --max-drop.

    Every area answers the same records, and is compared with the bundle within its own limit, record by record, with
    the interval that `edgetune gate` decides by.
    Exit codes: 0 an area was picked, 1 the largest loses too much or a row failed, 4 not enough records to tell.
    """
    from edgetune_bench import table
    from edgetune_bench.folder import REPORT

    found = tune_budget(**options)
    say_state(console, found)
    if found.results is None or found.stage is None:
        return
    if found.tried:
        whole = next(row for row in found.results.ran if row.baseline)
        title = found.tried[0].check.name
        console.table([_line(whole, whole, title), *(_line(one.row, whole, title, one) for one in found.tried)])
    for remark in table.remarks(found.results.rows):
        console.line(remark)
    console.note(f"report: {found.stage.folder / REPORT}")
    if found.chosen is not None:
        console.line(_told(found, found.chosen, options["max_drop"]))
    console.result(
        {
            "max_pixels": found.max_pixels,
            "tried": [{"max_pixels": one.row.max_pixels, **one.check.to_dict()} for one in found.tried],
            "tuned": found.tuned.folder if found.tuned else None,
            "results": found.results.to_dict(),
        }
    )
    found.raise_for_failures()


def _line(row: Measured, whole: Measured, title: str, one: Tried | None = None) -> dict[str, object]:
    joules = row.power.joules if row.power else None
    return {
        "max pixels": row.max_pixels,
        "image tokens": row.image_tokens,
        "Acc@0.5": round(100 * row.ground.acc50, 1) if row.ground and row.ground.acc50 is not None else None,
        "Acc@0.75": round(100 * row.ground.acc75, 1) if row.ground and row.ground.acc75 is not None else None,
        title: one.check.figure if one else "own limit",
        "within": one.check.outcome if one else None,
        "ms p50": float(f"{1000 * row.stages.total.p50:.3g}"),
        "of the time": f"{row.stages.total.p50 / whole.stages.total.p50:.0%}",
        "J an answer": "not told" if joules is None else float(f"{joules:.3g}"),
    }


def _told(found: TunedBudget, chosen: Tried, max_drop: float) -> str:
    """What was picked, in one line, with the option that uses it."""
    written = f"; {found.tuned.folder} has it as its own limit" if found.tuned else ""
    return (
        f"the smallest within {max_drop:g} points of {chosen.check.name.removeprefix('drop of ')}: "
        f"--max-pixels {chosen.row.max_pixels}, with a drop of {chosen.check.figure}{written}"
    )
