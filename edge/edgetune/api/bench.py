"""`edgetune.bench` and `edgetune.merge_results`: models side by side on the same records, and results joined."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.api.measure import Measurement, ShardOptions, counts, measure_study
from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import run_stage
from edgetune_runtime.errors import InputError
from edgetune_runtime.pixels import parse_area

log = logging.getLogger("edgetune")


@dataclass(frozen=True, kw_only=True)
class BenchOptions(StageOptions, ShardOptions):
    """Options of `edgetune.bench`.

    Examples:
        >>> from edgetune import BenchOptions
        >>> options = BenchOptions(targets=["runs/merged", "small=runs/int4"], data="test.jsonl", output="runs/bench")
        >>> [str(target) for target in options.targets], options.warmup
        (['runs/merged', 'small=runs/int4'], 2)
    """

    targets: tuple[Path, ...] = option(
        help="Folders of bundles and checkpoints, each a row; NAME=FOLDER names the row.",
        argument=True,
        metavar="[NAME=]TARGET...",
    )
    output: Path | None = option(None, help="Folder to write results, predictions and the report to.")
    report: Path | None = option(None, help="Another name for --output.")
    baseline: Path | None = option(
        None,
        help="The checkpoint or bundle that the others are compared with; by default the only checkpoint "
        "among the targets.",
        metavar="[NAME=]TARGET",
    )
    rounds: int = option(1, help="Split the records into N parts, models taking turns after each.", minimum=1)
    warmup: int = option(2, help="Answers that each model gives unmeasured before the measured ones.", minimum=0)
    engine: str | None = option(None, help="Installed engine that runs the bundles, in place of the runtime's own.")
    max_pixels: tuple[int, ...] = option(
        (),
        help="Largest areas of the resized pictures, such as 200k,400k,1M; every target is a row at each of them, and "
        "the baseline keeps its own.",
        metavar="N,...",
        commas=True,
        parse=parse_area,
        minimum=1,
    )
    stall: float = option(600.0, help="Stop a model that has not answered for this many seconds.", minimum=1)
    pictures: int | None = option(
        None, help="Draw the answers of all rows to N records beside the truth, into pictures.png.", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise InputError("no target given", hint="name a bundle or a checkpoint")
        if (self.output is None) == (self.report is None):
            raise InputError("Give one of --output and --report, the folder for everything that is written.")

    @property
    def folder(self) -> Path:
        """Where everything is written, by either name."""
        folder = self.output or self.report
        assert folder is not None
        return folder


@takes(BenchOptions)
def bench(options: BenchOptions) -> Measurement:
    """Compare bundles and checkpoints: accuracy, speed by stage, memory and size.

    Every row answers the same records in a process of its own. One that fails does not end the others: it is a row of
    the results with its reason, and `Measurement.raise_for_failures` raises for it.

    Raises:
        InputError: a target, a record or a picture cannot be used, found before anything runs.
    """
    from edgetune_bench.study import prepare
    from edgetune_bench.targets import identify
    from edgetune_data.copies import canonical_file
    from edgetune_data.read import stage_inputs
    from edgetune_runtime.bench.options import Options
    from edgetune_runtime.bench.targets import parse

    known = partial(identify, engine=options.engine)
    study = prepare(
        [parse(str(target), known) for target in options.targets],
        canonical_file(options.data),
        options=Options.of(options, max_pixels=options.max_pixels or None, shard=options.part),
        made_from=stage_inputs("data", options.data),
        baseline=parse(str(options.baseline), known) if options.baseline else None,
        pictures=options.pictures or 0,
        report=True,
    )
    return measure_study("bench", study, options.folder, options)


@dataclass(frozen=True, kw_only=True)
class MergeResultsOptions(StageOptions):
    """Options of `edgetune.merge_results`.

    Examples:
        >>> from edgetune import MergeResultsOptions
        >>> options = MergeResultsOptions(files=["server=runs/bench", "orin=orin.json"], output="runs/all")
        >>> [str(file) for file in options.files]
        ['server=runs/bench', 'orin=orin.json']
    """

    files: tuple[Path, ...] = option(
        help="Files of `edgetune-run bench` or folders of `edgetune bench` or `eval`; MACHINE=RESULTS says what their "
        "rows are marked with.",
        argument=True,
        metavar="[MACHINE=]RESULTS...",
    )
    output: Path = option(help="Folder to write the results and the report to.")


@takes(MergeResultsOptions)
def merge_results(options: MergeResultsOptions) -> Measurement:
    """Join the shards of a run, or results of the same records from several machines, and write a report of them.

    All rows are compared with the one baseline that the results have, and computed again from their answers.

    Raises:
        InputError: the results are not of the same records, have several baselines, or cannot be read; or shards are
            missing, there twice, or not of one run.
    """
    from edgetune_bench import folder, merging, shards

    machines = merging.gather([str(file) for file in options.files])

    def build(work: Path) -> dict[str, Any]:
        results, answers, pictures = merging.merge(machines)
        for remark in shards.remarks(results):
            log.info(remark)
        folder.write(work, results, answers, report=True, pictures=pictures)
        return counts(results)

    done = run_stage(
        "bench",
        options.output,
        inputs={source.role: source.path for group in machines.values() for source in group},
        settings={"merged": list(machines)},
        build=build,
        force=options.force,
        dry_run=options.dry_run,
    )
    results = None if options.dry_run else folder.read_results(options.output)
    return Measurement(tuple(row.name for row in results.rows) if results else (), results, done)
