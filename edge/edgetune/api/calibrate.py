"""`edgetune.calibrate`: int4 weights for a checkpoint, solved on your own records."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from edgetune_calibrate.settings import CalibrateSettings
from edgetune_core.options import StageOptions, option, takes
from edgetune_core.stage import StageResult, run_stage
from edgetune_runtime.errors import InputError

log = logging.getLogger("edgetune")

USUAL_SAMPLES = 128
"""Records that a calibration takes unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class _Places(StageOptions):
    checkpoint: Path = option(help="Hugging Face folder of the model; merge an adapter into it first.")
    data: Path | None = option(None, help="Records to calibrate on, in any format that data convert reads.")
    evaluation: Path | None = option(
        None, help="Records that you will evaluate on; a picture that is in both is an error.", flag="--eval"
    )
    output: Path = option(help="Folder to write the weight set to.")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(CalibrateSettings, _Places):
    """Options of `edgetune.calibrate`.

    Examples:
        >>> from edgetune import CalibrateOptions
        >>> options = CalibrateOptions(checkpoint="runs/merged", data="train.jsonl", output="runs/weights", bits=[8])
        >>> options.method, options.bits, str(options.output)
        ('gptq', (8,), 'runs/weights')
    """


@takes(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> StageResult:
    """Solve int4 weights for a checkpoint on your own records.

    The result is one weight set that every export format is written from. Started again, an interrupted run goes on
    after the last finished block.

    Raises:
        InputError: the checkpoint or the records cannot be calibrated on, or a picture is evaluated on, too.
        MissingDependency: the device does not exist.
    """
    if options.data is None:
        raise InputError(
            "no calibration data",
            hint="give --data records.jsonl with your own pictures and boxes: weights solved on text alone lose boxes",
        )
    from edgetune_calibrate.samples import calibration_set
    from edgetune_core.checkpoint import HubCheckpoint
    from edgetune_data.copies import canonical_file, keep_samples
    from edgetune_data.read import stage_inputs

    settings = options.narrow(CalibrateSettings)
    inputs = stage_inputs("data", options.data)
    inputs |= stage_inputs("eval", options.evaluation) if options.evaluation else {}
    data = canonical_file(options.data)
    evaluation = canonical_file(options.evaluation) if options.evaluation else None
    source = HubCheckpoint.open(options.checkpoint, exported=True)
    source.check_template()
    chosen = calibration_set(source, data, samples=settings.samples, seed=settings.seed, evaluation=evaluation)
    if settings.samples is None and len(chosen.samples) < USUAL_SAMPLES:
        log.info(f"{data}: calibrating on all {len(chosen.samples)} records; {USUAL_SAMPLES} or more are usual")
    if chosen.remark:
        log.info(chosen.remark)

    def build(work: Path) -> dict[str, Any]:
        keep_samples(data, {sample.record.source for sample in chosen.samples}, work)
        return _build(options.checkpoint, data, work, settings, evaluation)

    stage = run_stage(
        "calibrate",
        options.output,
        inputs={"checkpoint": options.checkpoint, **inputs},
        settings=settings.to_dict() | {"samples_sha256": chosen.sha256},
        build=build,
        seed=settings.seed,
        force=options.force,
        dry_run=options.dry_run,
        resumable=True,
    )
    return replace(stage, facts={"records": len(chosen.samples)})


def _build(
    checkpoint: Path, data: Path, work: Path, settings: CalibrateSettings, evaluation: Path | None
) -> dict[str, Any]:
    """Calibrate with a progress bar (none off a terminal)."""
    from tqdm import tqdm

    from edgetune_calibrate.run import calibrate as solve
    from edgetune_core.progress import Step

    sample, block = Step("sample"), Step("block")

    with tqdm(desc="calibrate", unit="block", disable=None, leave=False) as bar:

        def seen(done: int, total: int) -> None:
            bar.set_postfix_str(sample.told(done, total))
            block.began = perf_counter()

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(block.told(done, total), refresh=False)
            bar.update(done - bar.n)

        return solve(checkpoint, data, work, settings, evaluation=evaluation, progress=progress, seen=seen)
