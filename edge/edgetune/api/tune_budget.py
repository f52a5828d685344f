"""`edgetune.tune_budget`: the smallest pictures with which a bundle is accurate enough."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.api.gate import Drop
from edgetune.api.measure import Measurement, MeasureOptions, measure_study
from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import StageResult
from edgetune_runtime.errors import GateFailed, GateInconclusive
from edgetune_runtime.pixels import parse_area

if TYPE_CHECKING:
    from edgetune_bench.budget import Tried


@dataclass(frozen=True, kw_only=True)
class TuneBudgetOptions(StageOptions, MeasureOptions):
    """Options of `edgetune.tune_budget`.

    Examples:
        >>> from edgetune import TuneBudgetOptions
        >>> options = TuneBudgetOptions(bundle="runs/int4", data="test.jsonl", max_drop=1, output="runs/budget")
        >>> options.max_drop, options.metric, options.max_pixels
        (1.0, 'acc@0.5', ())
    """

    bundle: Path = option(help="Folder of a bundle.", argument=True)
    output: Path = option(help="Folder to write results, predictions and the report to.")
    max_drop: float = option(
        help="Largest drop of --metric below the bundle within its own limit, in points (hundredths).", minimum=0
    )
    metric: Drop = option("acc@0.5", help="What --max-drop limits.")
    max_pixels: tuple[int, ...] = option(
        (),
        help="Areas of the resized pictures to try, such as 200k,400k; by default six below what the pictures take, "
        "each 0.71 of the one before.",
        metavar="N,...",
        commas=True,
        parse=parse_area,
        minimum=1,
    )
    tuned: Path | None = option(
        None, help="Folder to write the bundle to once more, with the area that was picked as its own limit."
    )
    rounds: int = option(1, help="Split the records into N parts, areas taking turns after each.", minimum=1)
    warmup: int = option(2, help="Answers that are given unmeasured before the measured ones.", minimum=0)
    engine: str | None = option(None, help="Installed engine that runs the bundle, in place of the runtime's own.")
    stall: float = option(600.0, help="Stop a row that has not answered for this many seconds.", minimum=1)


@dataclass(frozen=True)
class TunedBudget(Measurement):
    """What `edgetune.tune_budget` found.

    Examples:
        >>> from edgetune import TunedBudget
        >>> TunedBudget(names=("int4", "int4@400k"), results=None, stage=None).max_pixels is None  # after a dry run
        True

    Attributes:
        tried: what each area came to, the largest first.
        chosen: the smallest area within the limit, as all larger ones are; None where none is.
        tuned: the bundle that was written, where one was asked for.
    """

    tried: tuple[Tried, ...] = ()
    chosen: Tried | None = None
    tuned: StageResult | None = None

    @property
    def max_pixels(self) -> int | None:
        """The area that was picked, in pixels: what `Session.load(max_pixels=)` takes."""
        return None if self.chosen is None else self.chosen.row.max_pixels

    def raise_for_failures(self) -> None:
        """Do nothing when an area was picked.

        Raises:
            GateFailed: a row failed, or the largest area that was tried loses more than the limit.
            GateInconclusive: it may be within the limit, and the records are too few to tell.
        """
        super().raise_for_failures()
        if self.results is None or self.chosen is not None:
            return
        first = self.tried[0]
        what = f"no area is within the limit: {first.row.name}, {first.check.name}: {first.check.message}"
        if first.check.outcome == "inconclusive":
            raise GateInconclusive(what, hint="measure more records, allow a larger drop, or try a larger area")
        raise GateFailed(what, hint="allow a larger drop, or try a larger area with --max-pixels")


@takes(TuneBudgetOptions)
def tune_budget(options: TuneBudgetOptions) -> TunedBudget:
    """Find the smallest area of the resized pictures with which a bundle loses no more than a limit.

    Every area answers the same records, and is compared with the bundle within its own limit, record by record, with
    the interval that `gate` decides by. Areas are decided from the largest to the first that is not within the limit.

    Raises:
        InputError: the bundle's preprocessing has no such limit, an area is over its own or under the least, a record
            or a picture cannot be used, or the records have nothing that the metric counts.
    """
    from edgetune_bench import budget
    from edgetune_bench.study import prepare
    from edgetune_data.copies import canonical_file
    from edgetune_data.read import stage_inputs
    from edgetune_export.bounded import write_bounded
    from edgetune_runtime.bench.options import Options
    from edgetune_runtime.bench.targets import identify_bundle
    from edgetune_runtime.bundle import Bundle
    from edgetune_runtime.records import read_records

    target = identify_bundle(options.bundle, engine=options.engine)
    bundle = Bundle.load(options.bundle, verify=False)
    data = canonical_file(options.data)
    areas = options.max_pixels
    if not areas:
        records = read_records(data)[: options.limit]
        areas = budget.ladder(bundle.spec, dict.fromkeys(record.image for record in records), options.bundle)
    for area in areas:
        bundle.bounded(area)
    study = prepare(
        [target],
        data,
        options=Options.of(options, max_pixels=areas),
        made_from=stage_inputs("data", options.data),
        baseline=target,
        report=True,
    )
    measured = measure_study("tune-budget", study, options.output, options)
    found = partial(TunedBudget, measured.names, measured.results, measured.stage)
    if measured.results is None or measured.results.failed:
        return found()
    tried = budget.tried(measured.results, options.metric, options.max_drop)
    chosen = budget.choose(tried)
    tuned = None
    if chosen is not None and options.tuned is not None:
        assert chosen.row.max_pixels is not None
        tuned = write_bounded(options.bundle, chosen.row.max_pixels, options.tuned, force=options.force)
    return found(tuple(tried), chosen, tuned)
