"""`edgetune gate`: decide by exit code whether measured rows are good enough to ship."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetune.api.gate import gate
from edgetune.commands._common import Console, verb
from edgetune_runtime.errors import GateFailed, GateInconclusive

if TYPE_CHECKING:
    from edgetune_bench.gate import Check


@verb(gate)
def command(console: Console, **options: Any) -> None:
    """Hold the rows of a measurement to limits: accuracy, accuracy lost, time, size, memory.

    RESULTS is a folder of `edgetune bench`, its results.json, or a file of `edgetune-run bench`.
    Exit codes: 0 all good, 1 a limit is broken or a row failed, 4 not enough records to tell.
    """
    found = gate(**options)
    checks = found.checks
    console.table([_line(check) for check in checks])
    console.result({"outcome": found.outcome, "checks": [check.to_dict() for check in checks]})
    if found.outcome == "fail":
        raise GateFailed(_sum_up([check for check in checks if check.outcome == "fail"], len(checks), "failed"))
    if not found.passed:
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
