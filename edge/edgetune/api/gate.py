"""`edgetune.gate`: whether measured rows are good enough to ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from edgetune_core.options import Options, option, takes
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_bench.gate import Check, Outcome

Drop = Literal["acc@0.5", "acc@0.75", "acc@0.9", "miou", "vqa", "box-iou"]
FLOORS: tuple[str, ...] = (*get_args(Drop), "refusal-recall", "refusal-precision", "valid-box", "anls")


@dataclass(frozen=True, kw_only=True)
class GateOptions(Options):
    """Options of `edgetune.gate`.

    Examples:
        >>> from edgetune import GateOptions
        >>> GateOptions(results="runs/bench", floors={"acc@0.5": 80}, max_p95_ms=80).budgets
        {'p95_ms': 80.0}
        >>> GateOptions(results="runs/bench", floors={"accuracy": 80})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --min: 'accuracy' is not one of acc@0.5, ...
    """

    results: Path = option(
        help="A folder of `edgetune bench`, its results.json, or a file of `edgetune-run bench`.", argument=True
    )
    rows: tuple[str, ...] = option(
        (), help="Row to check; all but the baseline unless given. Repeatable.", flag="--row", metavar="NAME"
    )
    floors: Mapping[str, float] = option(
        {},
        help=f"Least value of an accuracy, such as acc@0.5=80; repeatable. METRIC is one of {', '.join(FLOORS)}.",
        flag="--min",
        metavar="METRIC=PERCENT",
        minimum=0,
        maximum=100,
    )
    max_drop: float | None = option(
        None, help="Largest drop of each --metric below the baseline, in points (hundredths).", minimum=0
    )
    metrics: tuple[Drop, ...] = option(
        (), help="Metric limited by --max-drop; acc@0.5 unless given. Repeatable.", flag="--metric"
    )
    max_p50_ms: float | None = option(None, help="Largest median time of an answer, in milliseconds.", minimum=0)
    max_p95_ms: float | None = option(
        None, help="Largest 95th-percentile time of an answer, in milliseconds.", minimum=0
    )
    max_size_mb: float | None = option(None, help="Largest size of the folder, in 10^6 bytes.", minimum=0)
    max_memory_mb: float | None = option(None, help="Largest resident memory of the process, in 10^6 bytes.", minimum=0)
    max_gpu_mb: float | None = option(None, help="Largest growth of the GPU's used memory, in 10^6 bytes.", minimum=0)
    max_cold_start_s: float | None = option(
        None, help="Longest time from the start of the process to its first answer, in seconds.", minimum=0
    )
    allow_inconclusive: bool = option(
        False, help="Pass checks that too few records leave undecided; set --min as well."
    )
    allow_unchecked: bool = option(False, help="Pass bundles that were exported without their self-check.")
    junit: Path | None = option(None, help="File to write the checks to, as JUnit XML.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.floors:
            if name not in FLOORS:
                raise InputError(f"--min: {name!r} is not one of {', '.join(FLOORS)}")
        if self.metrics and self.max_drop is None:
            raise InputError("--metric needs --max-drop, the points that it may lose")
        if self.max_drop is None and not self.floors and not self.budgets:
            raise InputError("give at least one limit, such as --min acc@0.5=80, --max-drop 1.0 or --max-p95-ms 80")

    @property
    def budgets(self) -> dict[str, float]:
        """Largest values of the costs that are limited, by key of `edgetune_bench.gate.BUDGETS`."""
        names = ("p50_ms", "p95_ms", "size_mb", "memory_mb", "gpu_mb", "cold_start_s")
        limits = {name: getattr(self, f"max_{name}") for name in names}
        return {name: limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class Gated:
    """What `edgetune.gate` found.

    Examples:
        >>> from edgetune import Gated
        >>> found = Gated(checks=[], outcome="inconclusive", passed=False)
        >>> "ship" if found.passed else found.outcome
        'inconclusive'

    Attributes:
        checks: one for each row and limit.
        outcome: of all: "pass", "fail", or "inconclusive" where there are too few records to tell.
        passed: whether the rows may ship: nothing failed, and doubt was allowed where there is any.
    """

    checks: list[Check]
    outcome: Outcome
    passed: bool


@takes(GateOptions)
def gate(options: GateOptions) -> Gated:
    """Hold the rows of a measurement to limits: accuracy, accuracy lost, time, size, memory.

    Raises:
        InputError: the results cannot be read, a row or a figure is not in them, or no limit is given.
    """
    from edgetune_bench.folder import read_results
    from edgetune_bench.gate import check_rows, worst
    from edgetune_bench.junit import junit_xml
    from edgetune_runtime.files import write_whole

    measured = read_results(options.results)
    checks = check_rows(
        measured,
        rows=options.rows,
        max_drop=options.max_drop,
        metrics=tuple(dict.fromkeys(options.metrics)) or ("acc@0.5",),
        floors=options.floors,
        budgets=options.budgets,
        unchecked=options.allow_unchecked,
    )
    if options.junit is not None:
        text = junit_xml(checks, created=measured.created, allow_inconclusive=options.allow_inconclusive)
        write_whole(options.junit, text)
    outcome = worst(checks)
    passed = outcome == "pass" or (outcome == "inconclusive" and options.allow_inconclusive)
    return Gated(checks, outcome, passed)
