"""`edgetune.bench` and `edgetune.evaluate`: models on records whose answers are known, and what is made of the results.

`evaluate` is the verb `eval`, whose name in Python belongs to a builtin.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from edgetune_core.options import Options, StageOptions, option, takes
from edgetune_core.stage import StageResult, check_input, run_stage
from edgetune_runtime.errors import BundleError, EdgetuneError, GateFailed, InputError, MissingDependency
from edgetune_runtime.manifest import read_manifest
from edgetune_runtime.pixels import parse_area

if TYPE_CHECKING:
    from edgetune_bench.study import Study
    from edgetune_runtime.bench.results import Measured, Results
    from edgetune_runtime.records import Shard

log = logging.getLogger("edgetune")


@dataclass(frozen=True)
class Measurement:
    """What `edgetune.bench`, `evaluate` and `merge_results` found.

    Examples:
        >>> from edgetune import Measurement
        >>> planned = Measurement(names=("fp32", "int4"), results=None, stage=None)  # after a dry run
        >>> planned.raise_for_failures()
        >>> planned.names
        ('fp32', 'int4')

    Attributes:
        names: of the rows, in the order of the table.
        results: the figures of every row, as results.json holds them; None after a dry run.
        stage: the folder that was written; None where none was asked for.
    """

    names: tuple[str, ...]
    results: Results | None
    stage: StageResult | None

    def raise_for_failures(self) -> None:
        """Do nothing when every row ran.

        Raises:
            GateFailed: some rows failed; their `reason` is in the results.
        """
        failed = self.results.failed if self.results else []
        if failed:
            names = ", ".join(row.name for row in failed)
            hint = f"{self.stage.folder / 'logs'} has what they wrote" if self.stage else None
            raise GateFailed(f"{len(failed)} of {len(self.names)} rows failed: {names}", hint=hint)


@dataclass(frozen=True)
class Evaluation(Measurement):
    """What `edgetune.evaluate` found: a measurement of one row.

    Examples:
        >>> from edgetune import Evaluation
        >>> Evaluation(names=("int4",), results=None, stage=None).row
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: a dry run measures nothing
    """

    @property
    def row(self) -> Measured:
        """The figures of the row. Raises as `raise_for_failures`; after a dry run there are none."""
        self.raise_for_failures()
        if self.results is None:
            raise InputError("a dry run measures nothing")
        return self.results.ran[0]

    def raise_for_failures(self) -> None:
        """Do nothing when the row ran.

        Raises:
            InputError, MissingDependency, GateFailed: what the row failed with.
        """
        for row in self.results.failed if self.results else []:
            kinds: dict[int, type[EdgetuneError]] = {2: InputError, 3: MissingDependency}
            raise kinds.get(row.exit_code, GateFailed)(f"{row.name}: {row.reason}")


@dataclass(frozen=True, kw_only=True)
class _Measured(Options):
    data: Path = option(help="Records with their answers, in any format that data convert reads.")
    limit: int | None = option(None, help="Use only the first N records; all unless given.", minimum=1)
    shard: str | None = option(
        None,
        help="Use only the records of every N-th picture from the I-th on; `edgetune bench merge` joins the results.",
        metavar="I/N",
    )
    device: Literal["cpu", "cuda"] = option("cpu", help="Device to compute on.")
    threads: int | None = option(
        None, help="CPU threads; by default all usable cores, with --device cuda the engine's own choice."
    )
    max_new_tokens: int = option(128, help="Longest answer, in tokens.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.part

    @property
    def part(self) -> Shard | None:
        """The shard that was asked for."""
        if self.shard is None:
            return None
        from edgetune_runtime.records import Shard

        try:
            return Shard.parse(self.shard)
        except InputError as error:
            raise InputError(f"--shard: {error}", hint=error.hint) from None


@dataclass(frozen=True, kw_only=True)
class BenchOptions(StageOptions, _Measured):
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
    from edgetune_runtime.bench import results
    from edgetune_runtime.bench.targets import parse

    known = partial(identify, engine=options.engine)
    study = prepare(
        [parse(str(target), known) for target in options.targets],
        canonical_file(options.data),
        options=results.Options(
            limit=options.limit,
            device=options.device,
            threads=options.threads,
            warmup=options.warmup,
            rounds=options.rounds,
            max_new_tokens=options.max_new_tokens,
            stall_s=options.stall,
            max_pixels=options.max_pixels or None,
            shard=options.part,
        ),
        made_from=stage_inputs("data", options.data),
        baseline=parse(str(options.baseline), known) if options.baseline else None,
        pictures=options.pictures or 0,
        report=True,
    )
    return _measure("bench", study, options.folder, options)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(StageOptions, _Measured):
    """Options of `edgetune.evaluate`.

    Examples:
        >>> from edgetune import EvaluateOptions
        >>> EvaluateOptions(target="runs/onnx-int4", data="test.jsonl", metrics=["ap"], limit=100).metrics
        ('ap',)
        >>> EvaluateOptions(target="runs/onnx-int4", data="test.jsonl", limit=0)
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --limit: 0 must be at least 1
    """

    target: Path = option(help="Folder of a bundle or a checkpoint.", argument=True)
    adapter: Path | None = option(None, help="Folder of a LoRA adapter to apply to the checkpoint.")
    output: Path | None = option(None, help="Folder to write predictions and results to.")
    pictures: int | None = option(
        None, help="Draw N answers beside the truth, into pictures.png; needs --output.", minimum=1
    )
    metrics: tuple[Literal["ap", "bleu", "cider"], ...] = option(
        (),
        help="Further figure to compute: average precision of boxes as COCO has it (ap), BLEU or CIDEr-D of "
        "answers in words. Repeatable.",
        flag="--metric",
    )
    gallery: Path | None = option(None, help="HTML file to write, with pictures of the worst answers.")
    worst: int = option(24, help="How many answers the gallery shows.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures and self.output is None:
            raise InputError("--pictures needs --output, the folder to draw into")


@takes(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> Evaluation:
    """Score a bundle, a checkpoint, or a checkpoint with an adapter on held-out records.

    Without a folder for the output, nothing is written but the gallery, where one is asked for.

    Raises:
        InputError: the target, a record or a picture cannot be used.
        MissingDependency: a library that a metric needs is not installed.
    """
    from edgetune_bench.study import GALLERY, prepare
    from edgetune_bench.targets import identify
    from edgetune_data.copies import canonical_file
    from edgetune_data.read import stage_inputs
    from edgetune_runtime.bench import results

    study = prepare(
        [identify(options.target, adapter=options.adapter)],
        canonical_file(options.data),
        options=results.Options(
            limit=options.limit,
            device=options.device,
            threads=options.threads,
            warmup=0,
            max_new_tokens=options.max_new_tokens,
            shard=options.part,
        ),
        made_from=stage_inputs("data", options.data),
        pictures=options.pictures or 0,
        metrics=tuple(dict.fromkeys(options.metrics)),
        worst=options.worst if options.output or options.gallery else 0,
    )
    copies = {} if options.gallery is None else {GALLERY: options.gallery}
    found = _measure("eval", study, options.output, options, copies)
    return Evaluation(found.names, found.results, found.stage)


def _measure(
    stage: str,
    study: Study,
    output: Path | None,
    flags: StageOptions,
    copies: Mapping[str, Path] = MappingProxyType({}),
) -> Measurement:
    """Run a study into its folder, or into a temporary one.

    `copies` says where to copy files of the folder, by their names. An earlier result with a failed row counts as
    unfinished: what was missing may have been installed since.
    """
    from edgetune_bench.folder import read_results

    names = tuple(target.name for target in study.targets)
    if output is None:
        for role, path in study.inputs.items():
            check_input(path, role)
        if flags.dry_run:
            return Measurement(names, None, None)
        with tempfile.TemporaryDirectory() as folder:
            results = study.build(Path(folder), log.info)
            _copy(Path(folder), copies)
        return Measurement(names, results, None)
    done = run_stage(
        stage,
        output,
        inputs=study.inputs,
        settings=study.settings,
        build=lambda work: _counts(study.build(work, log.info)),
        force=flags.force or _unfinished(output),
        dry_run=flags.dry_run,
    )
    if flags.dry_run:
        return Measurement(names, None, done)
    _copy(output, copies)
    return Measurement(names, read_results(output), done)


def _counts(results: Results) -> dict[str, Any]:
    """What the manifest of a measurement says of it."""
    return {"rows": len(results.rows), "failed": [row.name for row in results.failed]}


def _copy(folder: Path, copies: Mapping[str, Path]) -> None:
    """Copy files of the folder to where they are wanted; one that a failed row did not write is only remarked."""
    for name, place in copies.items():
        if (folder / name).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place)
        else:
            log.info(f"{place}: not written, for nothing was answered")


def _unfinished(output: Path) -> bool:
    try:
        return bool(read_manifest(output)["result"]["failed"])
    except (BundleError, KeyError):
        return False


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
        return _counts(results)

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


@dataclass(frozen=True, kw_only=True)
class ExportAnswersOptions(StageOptions):
    """Options of `edgetune.export_answers`.

    Examples:
        >>> from edgetune import ExportAnswersOptions
        >>> ExportAnswersOptions(results="runs/eval", format="coco", output="runs/coco").name
        'exam'
    """

    results: Path = option(help="Folder that edgetune eval or edgetune bench has written.", argument=True)
    format: Literal["coco", "evalscope", "vlmevalkit"] = option(help="Tool whose files to write.")
    name: str = option("exam", help="Name of the data set in these files.")
    output: Path = option(help="Folder to write the files to.")


@takes(ExportAnswersOptions)
def export_answers(options: ExportAnswersOptions) -> StageResult:
    """Write the answers of eval or bench as files of another evaluation suite.

    Returns:
        The stage, whose facts say what the format could not hold (`left_out`).

    Raises:
        InputError: the pictures that were measured are not here, or the format cannot hold the answers.
        MissingDependency: a library that writes the format is not installed.
    """
    from edgetune_bench import exports
    from edgetune_bench.folder import measured_pictures, read_answers, read_results

    found = read_results(options.results)
    answers = read_answers(options.results, found)
    if answers and options.format in exports.WITH_PICTURES and not measured_pictures(found, answers):
        raise InputError(
            f"{options.results}: the pictures that were measured are not on this machine, or were changed since",
            hint=f"export where they were measured: the files of {options.format} hold the pictures",
        )
    done = run_stage(
        "eval export",
        options.output,
        inputs={"results": options.results},
        settings={"format": options.format, "name": options.name},
        build=lambda work: {"left_out": exports.write(answers, work, options.format, name=options.name)},
        force=options.force,
        dry_run=options.dry_run,
    )
    return replace(done, facts={"left_out": done.result.get("left_out", [])})
