"""`edgetune export`: a merged checkpoint becomes a bundle for one engine."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.commands._common import Console, verb


@verb(writes=True)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face checkpoint, merged (not an adapter).",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--format", "format_", type=click.Choice(["onnx"]), default="onnx", help="Engine format.")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8", "int4"]), default="int4", help="Decoder weights."
)
@click.option(
    "--vision-precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default=None,
    help="Vision encoder; by default the decoder's, int8 for int4, and fp16 for int8 and int4 on cuda.",
)
@click.option(
    "--head-precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    default=None,
    help="Language model head; by default the decoder's, int8 for int4.",
)
@click.option("--target", type=click.Choice(["cpu", "cuda"]), default="cpu", help="cuda computes in float16.")
@click.option("--block-size", type=click.Choice(["32", "64", "128"]), default="32", help="Weights that share a scale.")
@click.option("--symmetric", is_flag=True, help="int4 without zero points: smaller, a little less accurate.")
@click.option(
    "--max-length", type=int, default=None, help="Prompt and answer in tokens; by default 1024 beside an image."
)
def command(
    console: Console,
    checkpoint: Path,
    output: Path,
    format_: str,
    precision: str,
    vision_precision: str | None,
    head_precision: str | None,
    target: str,
    block_size: str,
    symmetric: bool,
    max_length: int | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Write a bundle from a merged checkpoint, checked against transformers."""
    from edgetune.export.options import ExportOptions
    from edgetune.stage import run_stage

    options = ExportOptions(
        precision=precision,
        vision_precision=vision_precision,
        head_precision=head_precision,
        target=target,
        block_size=int(block_size),
        symmetric=symmetric,
        max_length=max_length,
    )
    result = run_stage(
        "export",
        output,
        inputs={"checkpoint": checkpoint},
        settings={"format": format_, **options.to_dict()},
        build=lambda work: _build(checkpoint, work, options),
        force=force,
        dry_run=dry_run,
    )
    if dry_run:
        console.line(f"{output}: {'is up to date' if result.skipped else 'would be written'}")
    else:
        bundle = result.manifest["result"]["bundle"]
        console.line(f"{output}: {'unchanged, kept' if result.skipped else 'written'}")
        console.table([_row(bundle, sum(entry["size"] for entry in result.manifest["files"].values()))])
    console.result({"output": str(output), "skipped": result.skipped, "manifest": result.manifest})


def _build(checkpoint: Path, work: Path, options: object) -> dict[str, object]:
    """Export with a progress bar (none off a terminal)."""
    from tqdm import tqdm

    from edgetune.export.onnx_bundle import STEPS, export_onnx
    from edgetune.export.options import ExportOptions

    assert isinstance(options, ExportOptions)
    with tqdm(total=len(STEPS), desc="export", unit="step", disable=None, delay=2, leave=False) as bar:

        def progress(step: str) -> None:
            bar.update(STEPS.index(step) - bar.n)
            bar.set_postfix_str(step)

        return export_onnx(checkpoint, work, options, progress=progress)


def _row(bundle: dict[str, dict[str, object]], size: int) -> dict[str, object]:
    parity = bundle["parity"]
    return {
        "family": bundle["family"],
        "precision": bundle["precision"],
        "vision": bundle["vision_precision"],
        "MB": size / 1e6,
        "vision cosine": f"{parity['vision_mean_cosine']:.6f}",
        "logits max diff": parity["logits_max_abs_diff"],
        "KL": parity["mean_kl"],
        "tokens equal": parity["token_agreement"],
    }
