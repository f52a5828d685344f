"""`edgetune train`: a LoRA adapter from a checkpoint and records."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, verb
from edgetune.stage import StageResult, run_stage

if TYPE_CHECKING:
    from edgetune_train.settings import TrainSettings


@verb(writes=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Hugging Face folder of the base.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Training records, in any format that data convert reads.",
)
@click.option("--val", type=click.Path(path_type=Path), help="Records that are scored after each epoch.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write the adapter to.")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=3.0, help="Passes over the records.")
@click.option(
    "--box-loss",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="WEIGHT",
    help="Weight of a term for how far the expected boxes are off (L1 + GIoU).",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Records per device and step.")
@click.option(
    "--pack",
    type=click.IntRange(min=0),
    default=0,
    metavar="TOKENS",
    help="Pack records into sequences of this length, one per device and step; 0 pads batches instead.",
)
@click.option(
    "--attention",
    type=click.Choice(["auto", "sdpa", "torch_varlen", "flash_attention_2", "flash_attention_3"]),
    default="auto",
    help="What keeps packed records apart; auto is the fastest that is there.",
)
@click.option("--accumulate", type=click.IntRange(min=1), default=1, help="Steps added up per optimizer step.")
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), default=2e-4, help="Peak of the schedule."
)
@click.option("--rank", type=click.IntRange(min=1), default=16, help="LoRA rank.")
@click.option("--alpha", type=click.IntRange(min=1), default=32, help="LoRA alpha: scales the update by alpha/rank.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="LoRA dropout.")
@click.option("--rslora", is_flag=True, help="Scale by alpha/sqrt(rank) (rank-stabilised LoRA).")
@click.option("--dora", is_flag=True, help="Train direction and magnitude apart (DoRA).")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("auto",),
    help="Layers to adapt: auto, a name such as q_proj, or a regular expression on whole names. Repeatable.",
)
@click.option("--vision-lora", is_flag=True, help="Let auto and names reach the vision tower, frozen otherwise.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    help="What the base is held and computed in; auto is bf16 where the hardware has it.",
)
@click.option(
    "--quantize",
    type=click.Choice(["none", "nf4"]),
    default="none",
    help="Hold the language blocks in 4 bits (QLoRA); merge takes the unquantized base.",
)
@click.option(
    "--unfreeze",
    metavar="PARTS",
    help="Train parts of the vision tower whole: vision.last:N, merger, or both with a comma.",
)
@click.option(
    "--loraplus-ratio",
    type=click.FloatRange(min=1),
    help="Learning rate of LoRA's B over that of A (LoRA+).",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Trade time for memory in the backward pass.")
@click.option("--checkpoint-steps", type=click.IntRange(min=1), default=100, help="Steps between resume points.")
@click.option("--limit", type=click.IntRange(min=1), help="Train on the first N records only.")
@click.option("--val-limit", type=click.IntRange(min=1), default=200, help="Validation records to score.")
@click.option(
    "--early-stop",
    type=click.IntRange(min=1),
    metavar="PATIENCE",
    help="Stop after this many validations without a better mIoU.",
)
@click.option(
    "--keep",
    type=click.Choice(["last", "best"]),
    default="last",
    help="Which adapter to keep: the last one, or that of the best mIoU on --val.",
)
@click.option("--allow-overlap", is_flag=True, help="Accept validation images that are trained on.")
@click.option("--cache-mb", type=click.IntRange(min=0), default=2048, help="Memory for image features, in MiB.")
@click.option("--seed", type=int, default=0, help="Seed of initial weights, order and dropout.")
@click.option(
    "--trainer-arg", "trainer_args", multiple=True, metavar="KEY=VALUE", help="Any field of TrainingArguments."
)
def command(
    console: Console,
    checkpoint: Path,
    data: Path,
    val: Path | None,
    output: Path,
    limit: int | None,
    allow_overlap: bool,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Fine-tune a checkpoint on your records with LoRA.

    The same command continues an interrupted run from its last resume point.
    """
    from edgetune_data.read import load, stage_inputs
    from edgetune_train.checkpoint import Checkpoint
    from edgetune_train.inputs import check_disjoint, image_hashes, tree_hash
    from edgetune_train.launch import main_process, work_folder
    from edgetune_train.train import train

    settings = _settings(options)
    base = Checkpoint.open(checkpoint)
    records = load(data)[:limit]
    val_records = load(val) if val else []
    images = image_hashes([*records, *val_records])
    if not allow_overlap:
        check_disjoint(records, val_records, images)

    def build(folder: Path) -> dict[str, Any]:
        return train(base, records, val_records, settings, folder)

    stage = partial(
        run_stage,
        "train",
        output,
        inputs={"checkpoint": checkpoint, **stage_inputs("data", data), **(stage_inputs("val", val) if val else {})},
        settings=asdict(settings) | {"limit": limit, "images_sha256": tree_hash(images)},
        build=build,
        seed=settings.seed,
        force=force,
        resumable=True,
    )
    if main_process():
        _report(console, stage(dry_run=dry_run), len(records), dry_run=dry_run)
    elif not (dry_run or stage(dry_run=True).skipped):
        build(work_folder(output))


def _settings(options: dict[str, Any]) -> TrainSettings:
    """Return the stage's settings from the options of the same names."""
    from edgetune_train.lora import LoraSettings
    from edgetune_train.settings import TrainSettings, parse_trainer_args

    shape = {name: options.pop(name) for name in ("rank", "alpha", "dropout", "rslora", "dora", "targets")}
    lora = LoraSettings(**shape, vision=options.pop("vision_lora"))
    unfreeze = tuple((options.pop("unfreeze") or "").replace(",", " ").split())
    trainer_args = parse_trainer_args(options.pop("trainer_args"))
    return TrainSettings(lora=lora, unfreeze=unfreeze, trainer_args=trainer_args, **options)


def _report(console: Console, stage: StageResult, records: int, *, dry_run: bool) -> None:
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
        return
    if dry_run:
        console.line(f"{stage.folder}: would train on {records} records")
        return
    result = stage.manifest["result"]
    names = {"epoch": "epoch", "loss": "loss", "acc50": "Acc@0.5", "miou": "mIoU", "refusal_accuracy": "refused"}
    console.table([{title: row.get(key) for key, title in names.items()} for row in result["validation"]])
    loss = result["loss"]
    console.line(
        f"{stage.folder}: {result['steps']} steps, loss {loss['first']:.3f} to {loss['last']:.3f}, "
        f"{result['adapted_layers']} layers adapted ({result['trained_parameters']:,} parameters, "
        f"{result['precision']}), {result['samples_per_second']:.1f} samples/s"
    )
