"""`edgetune calibrate`: int4 weights for a checkpoint, solved on your own records."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, verb
from edgetune_core.stage import StageResult, run_stage
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_calibrate.settings import CalibrateSettings


def _numbers(allowed: tuple[int, ...], context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Return one or several of some numbers, separated by commas, in the order given."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")]
    for word in words:
        if word not in map(str, allowed):
            raise click.BadParameter(f"{word!r} is not one of {', '.join(map(str, allowed))}", context, option)
    return tuple(dict.fromkeys(map(int, words)))


@verb(writes=True)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face checkpoint, merged (not an adapter).",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Records to calibrate on, in any format that data convert reads."
)
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(path_type=Path),
    help="Records you will evaluate on: a picture in both is an error.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the weight set.")
@click.option("--method", type=click.Choice(["gptq", "awq", "rtn"]), default="gptq", help="How codes are found.")
@click.option(
    "--bits",
    callback=partial(_numbers, (3, 4, 8)),
    metavar="N[,N]",
    help="Bits of a weight: 3, 4 (default) or 8; with a budget several, by default 4,8.",
)
@click.option(
    "--group-size",
    "group_sizes",
    callback=partial(_numbers, (32, 64, 128)),
    default="128",
    metavar="N[,N]",
    help="Weights sharing a scale: 32, 64 or 128; of several the largest that divides a layer's inputs.",
)
@click.option("--budget-mb", type=float, help="Choose each layer's format: the least drift of boxes in so many MB.")
@click.option(
    "--max-drop", type=float, help="Choose each layer's format: the fewest bytes that cost so many points of box IoU."
)
@click.option("--symmetric", is_flag=True, help="No zero points: smaller, a little less accurate.")
@click.option(
    "--head", type=click.Choice(["16", "8", "4"]), default="16", help="Bits of the language model head; 16 leaves it."
)
@click.option("--samples", type=click.IntRange(min=1), help="Records to calibrate on; by default 128, or all if fewer.")
@click.option("--seed", type=int, default=0, help="Seed of their choice.")
@click.option(
    "--modality-weight",
    "modality_weights",
    multiple=True,
    metavar="ROLE=SHARE",
    help="How much all image, prompt or answer tokens together count; give all three.",
)
@click.option(
    "--compensate/--no-compensate",
    default=True,
    help="Aim at the unquantized model's outputs, so that later layers make up for earlier ones; twice the forwards.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to compute.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    help="Of the forward pass; auto is fp32 on the CPU, on a GPU bf16 for a bf16 checkpoint.",
)
@click.option("--offload", is_flag=True, help="Keep activations in host memory: less of the GPU's, a little slower.")
def command(
    console: Console,
    checkpoint: Path,
    data: Path | None,
    evaluation: Path | None,
    output: Path,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Solve int4 weights for a checkpoint on your own records.

    The result is one weight set that every export format is written from. The same command continues an interrupted
    run after the last finished block.
    """
    if data is None:
        raise InputError(
            "no calibration data",
            hint="give --data records.jsonl with your own pictures and boxes: weights solved on text alone lose boxes",
        )
    from edgetune_calibrate.checkpoint import Checkpoint
    from edgetune_calibrate.samples import calibration_set
    from edgetune_data.read import canonical_file, stage_inputs

    settings = _settings(options)
    inputs = stage_inputs("data", data) | (stage_inputs("eval", evaluation) if evaluation else {})
    data, evaluation = canonical_file(data), canonical_file(evaluation) if evaluation else None
    chosen = calibration_set(
        Checkpoint.open(checkpoint), data, samples=settings.samples, seed=settings.seed, evaluation=evaluation
    )
    if settings.samples is None and len(chosen.samples) < 128:
        console.note(f"{data}: calibrating on all {len(chosen.samples)} records; 128 or more are usual")

    if chosen.remark:
        console.note(chosen.remark)

    stage = run_stage(
        "calibrate",
        output,
        inputs={"checkpoint": checkpoint, **inputs},
        settings=asdict(settings) | {"samples_sha256": chosen.sha256},
        build=lambda work: _build(checkpoint, data, work, settings, evaluation),
        seed=settings.seed,
        force=force,
        dry_run=dry_run,
        resumable=True,
    )
    _report(console, stage, len(chosen.samples), dry_run=dry_run)


def _settings(options: dict[str, Any]) -> CalibrateSettings:
    """Return the stage's settings from the options of the same names."""
    from edgetune_calibrate.settings import CalibrateSettings
    from edgetune_calibrate.solve import SolveSettings

    chooses = options["budget_mb"] is not None or options["max_drop"] is not None
    bits = options.pop("bits") or ((4, 8) if chooses else (4,))
    solve = SolveSettings(
        method=options.pop("method"),
        bits=bits[0],
        group_size=max(options["group_sizes"]),
        symmetric=options.pop("symmetric"),
    )
    weights = _weights(options.pop("modality_weights"))
    head = int(options.pop("head"))
    return CalibrateSettings(solve=solve, bits=bits, head=head, modality_weights=weights, **options)


def _weights(pairs: tuple[str, ...]) -> dict[str, float]:
    weights = {}
    for pair in pairs:
        role, equals, text = pair.partition("=")
        try:
            weights[role] = float(text)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--modality-weight {pair!r}: must look like answer=2")
    return weights


def _build(
    checkpoint: Path, data: Path, work: Path, settings: CalibrateSettings, evaluation: Path | None
) -> dict[str, Any]:
    """Calibrate with a progress bar (none off a terminal)."""
    from tqdm import tqdm

    from edgetune_calibrate.run import calibrate

    with tqdm(desc="calibrate", unit="block", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return calibrate(checkpoint, data, work, settings, evaluation=evaluation, progress=progress)


def _report(console: Console, stage: StageResult, samples: int, *, dry_run: bool) -> None:
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
    elif dry_run:
        console.line(f"{stage.folder}: would calibrate on {samples} records")
    else:
        result = stage.manifest["result"]
        weights = result["weightset"]
        calibration = weights["calibration"]
        size = sum(entry["size"] for entry in stage.manifest["files"].values())
        console.line(
            f"{stage.folder}: {len(weights['linears'])} layers ({weights['method']}, {size / 1e6:.1f} MB) on "
            f"{calibration['samples']} records, {calibration['tokens']:,} tokens, in {result['seconds']:.0f} s; "
            f"{calibration['mean_error']:.2%} of a layer's output lost, most in {calibration['worst_linear']}"
        )
        if calibration["choice"]:
            _report_choice(console, weights["linears"], calibration["choice"])


def _report_choice(console: Console, linears: dict[str, Any], choice: dict[str, Any]) -> None:
    """Say how many layers got which format, and what their boxes became."""
    kinds = Counter((entry["bits"], entry["group_size"]) for entry in linears.values())
    counts = ", ".join(f"{count} of {bits} bits in groups of {size}" for (bits, size), count in sorted(kinds.items()))
    console.line(
        f"formats: {counts}; {choice['layers_mb']:.2f} MB of layers; boxes of the calibration records move by "
        f"{choice['measured_drop']:.2f} % ({choice['expected_drop']:.2f} % expected)"
    )
    limit = choice["max_drop"]
    if limit is not None and choice["measured_drop"] > limit:
        console.note(f"the boxes move by more than --max-drop {limit:g}: the layers' errors did not add up as expected")
