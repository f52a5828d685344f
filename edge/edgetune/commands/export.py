"""`edgetune export`: a merged checkpoint becomes a bundle for one engine, or one for each of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, suggestion, verb
from edgetune.commands._export_formats import export_formats
from edgetune_export.formats import FORMATS
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_export.options import ExportOptions

_WITHOUT_WEIGHTS = "calibrate first: edgetune calibrate, or give --data and --formats"


def _names(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Read a list of formats."""
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in FORMATS:
            known = f"the formats are {', '.join(FORMATS)}."
            raise click.BadParameter(f"{name!r}: {known}{suggestion(name, FORMATS)}", ctx=ctx, param=param)
    if text is not None and not names:
        raise click.BadParameter("no format given", ctx=ctx, param=param)
    return names


def _targets(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Read a list of GPUs, such as sm86,8.9."""
    from edgetune_runtime.backends.trt.build_engine import parse_target

    try:
        return tuple(parse_target(name) for name in text.split(",")) if text else ()
    except InputError as error:
        raise click.BadParameter(f"{error}", ctx=ctx, param=param) from error


@verb(writes=True)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face checkpoint, merged (not an adapter).",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weight set of edgetune calibrate.")
@click.option("--data", type=click.Path(path_type=Path), help="Records to calibrate on first; needs --formats.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), help="Kind of bundle.  [default: onnx]")
@click.option("--formats", callback=_names, help="Several, such as onnx,gptq: bundles OUTPUT/onnx and OUTPUT/gptq.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8", "int4"]), default="int4", help="Decoder weights."
)
@click.option(
    "--vision-precision",
    type=click.Choice(["fp32", "fp16", "int8", "int8-static"]),
    default=None,
    help="Vision encoder; by default the decoder's, int8 for int4, and fp16 for int8 and int4 on cuda. "
    "int8-static takes the activations' scales from the weight set.",
)
@click.option(
    "--head-precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    default=None,
    help="Language model head; by default the weight set's, else the decoder's, int8 for int4.",
)
@click.option("--target", type=click.Choice(["cpu", "cuda"]), default="cpu", help="cuda computes in float16.")
@click.option(
    "--block-size",
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale where they are rounded to nearest.  [default: 32; for trt 128 or 64]",
)
@click.option("--symmetric", is_flag=True, help="Rounded int4 without zero points: smaller, a little less accurate.")
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="4",
    help="4 lets CPUs round activations to int8 by block, which is fast; 0 does not.",
)
@click.option(
    "--dialect",
    type=click.Choice(["ort", "plain"]),
    default="ort",
    help="Operators of onnx: onnxruntime's own, or those of the ONNX standard only, for other runtimes.",
)
@click.option(
    "--trt-profile", type=click.Choice(["10.3", "10.13", "10.16"]), help="Oldest TensorRT to read trt graphs."
)
@click.option(
    "--trt-target", "trt_targets", callback=_targets, help="RTX GPUs to build engines for here, such as sm86,sm120."
)
@click.option(
    "--max-length", type=int, default=None, help="Prompt and answer in tokens; by default 1024 beside an image."
)
def command(
    console: Console,
    checkpoint: Path,
    weights: Path | None,
    data: Path | None,
    output: Path,
    format_: str | None,
    formats: tuple[str, ...],
    force: bool,
    dry_run: bool,
    **choices: Any,
) -> int:
    """Write a bundle from a merged checkpoint, checked against transformers.

    With --formats, a bundle for each of several engines, from one calibration.
    """
    from edgetune_export.options import ExportOptions

    if format_ and formats:
        raise InputError("--format and --formats exclude each other")
    if weights and data:
        raise InputError("--weights and --data exclude each other", hint="the weight set is calibrated already")
    if data and not formats:
        raise InputError("--data needs --formats: the weight set is written beside the bundles", hint="--formats onnx")
    for name in formats or (format_ or "onnx",):
        if FORMATS[name].needs_weights and not (weights or data):
            raise InputError(f"format {name} is written from a weight set", hint=_WITHOUT_WEIGHTS)
    choices |= {name: int(choices[name]) for name in ("block_size", "accuracy_level") if choices[name] is not None}
    options = ExportOptions(**choices)
    if formats:
        return export_formats(click.get_current_context(), console, formats)
    _export_one(console, checkpoint, weights, output, format_ or "onnx", options, force=force, dry_run=dry_run)
    return 0


def _export_one(
    console: Console,
    checkpoint: Path,
    weights: Path | None,
    output: Path,
    format_: str,
    options: ExportOptions,
    *,
    force: bool,
    dry_run: bool,
) -> None:
    from edgetune_core.stage import run_stage

    result = run_stage(
        "export",
        output,
        inputs={"checkpoint": checkpoint} | ({"weights": weights} if weights else {}),
        settings={"format": format_, **options.to_dict()},
        build=lambda work: _build(checkpoint, weights, work, format_, options),
        force=force,
        dry_run=dry_run,
    )
    if dry_run:
        console.line(f"{output}: {'is up to date' if result.skipped else 'would be written'}")
    else:
        console.line(f"{output}: {'unchanged, kept' if result.skipped else 'written'}")
        console.table([row(result.manifest)])
        deferred = result.manifest["result"]["bundle"].get("trt", {}).get("deferred")
        if deferred:
            console.line(deferred)
    console.result({"output": str(output), "skipped": result.skipped, "manifest": result.manifest})


def _build(
    checkpoint: Path, weights: Path | None, work: Path, format_: str, options: ExportOptions
) -> dict[str, object]:
    """Export with a progress bar (none off a terminal)."""
    from tqdm import tqdm

    from edgetune_core.weightset import WeightSet
    from edgetune_export.job import OPENING, ExportJob

    steps = (*OPENING, *FORMATS[format_].steps)
    with tqdm(total=len(steps), desc="export", unit="step", disable=None, delay=2, leave=False) as bar:

        def progress(step: str) -> None:
            bar.update(steps.index(step) - bar.n)
            bar.set_postfix_str(step)

        # The stage has compared the set's files with its manifest already.
        calibrated = None if weights is None else WeightSet.load(weights, verify=False)
        job = ExportJob.open(checkpoint, work, options, weights=calibrated, progress=progress)
        return FORMATS[format_].load()(job)


def row(manifest: Any) -> dict[str, object]:
    """A bundle's line in the table that is printed."""
    bundle = manifest["result"]["bundle"]
    parity = bundle["parity"]
    shown: dict[str, object] = {
        "format": bundle["format"],
        "family": bundle["family"],
        "precision": bundle["precision"],
        "vision": bundle["vision_precision"],
        "MB": sum(entry["size"] for entry in manifest["files"].values()) / 1e6,
        "vision cosine": f"{parity['vision_mean_cosine']:.6f}",
        "logits max diff": parity["logits_max_abs_diff"],
        "KL": parity["mean_kl"],
        "tokens equal": parity["token_agreement"],
    }
    drift = parity.get("drift")
    if drift is not None:
        shown |= {"records": drift["records"], "records KL": drift["mean_kl"], "box IoU": drift["mean_iou"]}
    return shown
