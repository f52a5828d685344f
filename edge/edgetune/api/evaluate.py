"""`edgetune.evaluate` and `edgetune.export_answers`: one model on records whose answers are known.

`evaluate` is the verb `eval`, whose name in Python belongs to a builtin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgetune.api.measure import Measurement, ShardOptions, measure_study
from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import StageResult, run_stage
from edgetune_runtime.errors import EdgetuneError, GateFailed, InputError, MissingDependency

if TYPE_CHECKING:
    from edgetune_runtime.bench.results import Measured


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
class EvaluateOptions(StageOptions, ShardOptions):
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
    found = measure_study("eval", study, options.output, options, copies)
    return Evaluation(found.names, found.results, found.stage)


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
