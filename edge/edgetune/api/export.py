"""`edgetune.export`: a merged checkpoint becomes a bundle for one engine, or one for each of several."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from edgetune_core.options import StageOptions, option, takes
from edgetune_core.processes import apart
from edgetune_core.stage import StageResult, run_stage
from edgetune_export.formats import CHECKPOINTS, FORMATS, find_format
from edgetune_export.settings import ExportSettings
from edgetune_runtime.errors import EdgetuneError, InputError
from edgetune_runtime.manifest import MANIFEST

log = logging.getLogger("edgetune")

WEIGHTS = "weights"
"""Folder of the weight set beside the bundles, when it is calibrated here."""


@dataclass(frozen=True, kw_only=True)
class _Places(StageOptions):
    checkpoint: Path = option(help="Hugging Face folder of the model; merge an adapter into it first.")
    weights: Path | None = option(
        None, help="Folder of a weight set from edgetune calibrate; without one, weights are rounded to nearest."
    )
    data: Path | None = option(
        None, help="Records to calibrate a weight set on first, in place of --weights; needs --formats."
    )
    output: Path = option(help="Folder to write the bundle to.")
    format: str | None = option(None, help="Format of the bundle.", known=tuple(FORMATS), shown="onnx")
    formats: tuple[str, ...] = option(
        (),
        help="Several formats with commas between them: onnx,gptq writes the bundles OUTPUT/onnx and OUTPUT/gptq.",
        metavar="NAME[,NAME]",
        known=tuple(FORMATS),
        commas=True,
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ExportSettings, _Places):
    """Options of `edgetune.export` and `edgetune.export_formats`.

    Examples:
        >>> from edgetune import ExportOptions
        >>> options = ExportOptions(checkpoint="base", weights="runs/weights", output="runs", formats=["onnx", "gptq"])
        >>> options.formats
        ('onnx', 'gptq')
        >>> ExportOptions(checkpoint="runs/merged", output="runs/bundle", format="gptq")
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: format gptq is written from a weight set
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format and self.formats:
            raise InputError("--format and --formats exclude each other")
        if self.weights and self.data:
            raise InputError("--weights and --data exclude each other", hint="the weight set is calibrated already")
        if self.data and not self.formats:
            raise InputError(
                "--data needs --formats: the weight set is written beside the bundles", hint="--formats onnx"
            )
        if self.for_servers and self.vision_precision:
            raise InputError(
                "--vision-precision has no effect on a bundle for servers: they run the checkpoint's own tower",
                hint="leave it out, or give --for lean,server",
            )
        if self.formats or self.format or not self.for_servers:
            names = self.formats or (self.format or "onnx",)
        else:  # which of the formats that servers read is told by the weight set
            names = CHECKPOINTS[:1]
        for name in names:
            known = find_format(name)
            if other := [purpose for purpose in self.purposes if purpose not in known.purposes]:
                raise InputError(
                    f"format {name} cannot be written for {other[0]}", hint=f"--format {', '.join(CHECKPOINTS)}"
                )
            if self.names and "server" not in known.purposes:
                raise InputError(
                    f"--names has no effect on format {name}, which is no checkpoint",
                    hint=f"leave it out, or --format {', '.join(CHECKPOINTS)}",
                )
            if known.needs_weights and not (self.weights or self.data):
                raise InputError(
                    f"format {name} is written from a weight set",
                    hint="calibrate first: edgetune calibrate, or give --data and --formats",
                )


@dataclass(frozen=True)
class Exported:
    """What `edgetune.export_formats` wrote.

    Examples:
        >>> from edgetune import Exported
        >>> from edgetune_runtime.errors import InputError
        >>> written = Exported(weights=None, bundles={}, failures={"trt": InputError("the family has no engine")})
        >>> [f"{name}: {error}" for name, error in written.failures.items()]
        ['trt: the family has no engine']

    Attributes:
        weights: the weight set that all formats are written from.
        bundles: format -> its bundle.
        failures: format -> why it was not written.
    """

    weights: Path | None
    bundles: dict[str, StageResult]
    failures: dict[str, EdgetuneError]


@takes(ExportOptions)
def export(options: ExportOptions) -> StageResult:
    """Write a bundle from a merged checkpoint, checked against transformers.

    Raises:
        InputError: the checkpoint, the weight set or an option cannot be exported.
        ParityError: the bundle does not answer as the checkpoint does.
    """
    if options.formats:
        raise InputError("several formats are written by `edgetune.export_formats`", hint="or give one format")
    if options.dry_run:  # what a real run refuses before it does anything else
        from edgetune_core.checkpoint import HubCheckpoint

        HubCheckpoint.open(options.checkpoint, exported=True, quantized=True).check_template()
    settings, format_ = options.narrow(ExportSettings), _format(options)
    return run_stage(
        "export",
        options.output,
        inputs={"checkpoint": options.checkpoint} | ({"weights": options.weights} if options.weights else {}),
        settings={"format": format_, **settings.to_dict()},
        build=lambda work: _build(options, settings, format_, work),
        force=options.force,
        dry_run=options.dry_run,
    )


def _format(options: ExportOptions) -> str:
    """The chosen format, or for servers alone the one that most of them read."""
    if options.format or not options.for_servers:
        return options.format or "onnx"
    from edgetune_core.checkpoint import HubCheckpoint
    from edgetune_core.weightset import WeightSet
    from edgetune_export.readers import server_format

    assert options.weights is not None
    family = HubCheckpoint.open(options.checkpoint, exported=True).family
    weights = WeightSet.load(options.weights, verify=False)
    return server_format({name: weights.format(name) for name in weights.names}, family.name)


def _build(options: ExportOptions, settings: ExportSettings, name: str, work: Path) -> dict[str, Any]:
    """Export with a progress bar (none off a terminal); each step is remarked with its time when it is done."""
    from tqdm import tqdm

    from edgetune_core.progress import Step
    from edgetune_core.weightset import WeightSet
    from edgetune_export.job import OPENING, ExportJob

    format_ = find_format(name)
    steps = (*OPENING, *format_.steps)
    with tqdm(total=len(steps), desc="export", unit="step", disable=None, delay=2, leave=False) as bar:
        began: list[Step] = []

        def progress(name: str) -> None:
            remark()
            began.append(Step(name))
            bar.update(steps.index(name) - bar.n)
            bar.set_postfix_str(name)

        def remark() -> None:
            if began:
                log.info(f"export: {began[-1].name}, {perf_counter() - began[-1].began:.1f} s")

        def tell(done: int, total: int) -> None:
            bar.set_postfix_str(began[-1].told(done, total))

        # The stage has compared the set's files with its manifest already.
        calibrated = None if options.weights is None else WeightSet.load(options.weights, verify=False)
        job = ExportJob.open(options.checkpoint, work, settings, weights=calibrated, progress=progress, tell=tell)
        result = format_.load()(job)
        remark()
        return result


@takes(ExportOptions)
def export_formats(options: ExportOptions) -> Exported:
    """Write several formats of one checkpoint from one calibration, which is made here where records are given.

    Each is a process of its own, so that none can take another down, and a stage of its own: an unchanged one is kept,
    an interrupted calibration is continued.

    Raises:
        InputError: the output is itself a result of edgetune, or options exclude each other.
        EdgetuneError: the calibration failed.
    """
    if not options.formats:
        raise InputError("no format given", hint="give formats, such as onnx and gptq")
    if (options.output / MANIFEST).is_file():
        raise InputError(f"{options.output}: is a bundle or another result itself", hint="choose another --output")
    weights = options.weights
    flags: dict[str, Any] = {"force": options.force, "dry_run": options.dry_run}
    if options.data:
        from edgetune.api.calibrate import calibrate

        weights = options.output / WEIGHTS
        apart(calibrate, checkpoint=options.checkpoint, data=options.data, output=weights, **flags)
    bundles: dict[str, StageResult] = {}
    failures: dict[str, EdgetuneError] = {}
    settings: dict[str, Any] = vars(options.narrow(ExportSettings))
    for name in options.formats:
        place: dict[str, Any] = {"checkpoint": options.checkpoint, "weights": weights, "output": options.output / name}
        if options.dry_run and weights is not None and not weights.is_dir():
            bundles[name] = StageResult(options.output / name, {}, False)
            continue
        try:
            bundles[name] = apart(export, format=name, **place, **settings, **flags)
        except EdgetuneError as error:
            failures[name] = error
    return Exported(weights, bundles, failures)
