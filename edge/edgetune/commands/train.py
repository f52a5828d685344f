"""`edgetune train`: a LoRA adapter from a checkpoint and records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._train_plan import make_plans
from edgetune_core.stage import StageResult, run_stage


@verb(writes=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Hugging Face folder of the base.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Training records, in any format that data convert reads."
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
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="FILES",
    help="Files of options (YAML or TOML), by commas: trainings in sequence, each from the adapter before it.",
)
@click.option("--allow-overlap", is_flag=True, help="Accept validation images that are trained on.")
@click.option("--allow-text-boxes", is_flag=True, help="Learn boxes that answers hold as text as they stand there.")
@click.option("--cache-mb", type=click.IntRange(min=0), default=2048, help="Memory for image features, in MiB.")
@click.option("--seed", type=int, default=0, help="Seed of initial weights, order and dropout.")
@click.option(
    "--trainer-arg", "trainer_args", multiple=True, metavar="KEY=VALUE", help="Any field of TrainingArguments."
)
def command(
    console: Console,
    checkpoint: Path,
    output: Path,
    stages: tuple[str, ...],
    allow_overlap: bool,
    allow_text_boxes: bool,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Fine-tune a checkpoint on your records with LoRA.

    The same command continues an interrupted run from its last resume point.
    """
    from edgetune_data.text_boxes import refuse
    from edgetune_train.checkpoint import Checkpoint
    from edgetune_train.inputs import check_disjoint, image_hashes, tree_hash
    from edgetune_train.launch import main_process, work_folder
    from edgetune_train.stages import Stage, train_stages
    from edgetune_train.train import train

    plans = make_plans(click.get_current_context(), options, stages)
    base = Checkpoint.open(checkpoint)
    if base.spec.remark:
        console.note(base.spec.remark)
    parts = [Stage(plan.name, *plan.load(), plan.settings) for plan in plans]
    if not allow_text_boxes:
        for part in parts:
            refuse(part.records)
    images = image_hashes([entry for part in parts for entry in (*part.records, *part.val)])
    for number, part in enumerate(parts, start=1):
        if not allow_overlap and part.val:
            remark = check_disjoint([entry for before in parts[:number] for entry in before.records], part.val)
            if remark:
                console.note(remark)

    def build(folder: Path) -> dict[str, Any]:
        if stages:
            return train_stages(base, parts, folder)
        return train(base, parts[0].records, parts[0].val, parts[0].settings, folder)

    chosen = []
    for plan, part in zip(plans, parts, strict=True):
        seen = {path: images[path] for entry in (*part.records, *part.val) for path in entry.images}
        chosen.append(plan.chosen() | {"images_sha256": tree_hash(seen)})
    stage = partial(
        run_stage,
        "train",
        output,
        inputs={"checkpoint": checkpoint} | {role: path for plan in plans for role, path in plan.inputs().items()},
        settings={"stages": dict(zip([plan.name for plan in plans], chosen, strict=True))} if stages else chosen[0],
        build=build,
        seed=plans[0].settings.seed,
        force=force,
        resumable=True,
    )
    if main_process():
        _report(console, stage(dry_run=dry_run), sum(len(part.records) for part in parts), dry_run=dry_run)
    elif not (dry_run or stage(dry_run=True).skipped):
        build(work_folder(output))


def _report(console: Console, stage: StageResult, records: int, *, dry_run: bool) -> None:
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
        return
    if dry_run:
        console.line(f"{stage.folder}: would train on {records} records")
        return
    result = stage.manifest["result"]
    trained = result.get("stages", [result])
    names = {"name": "stage"} if "stages" in result else {}
    names |= {"epoch": "epoch", "loss": "loss", "acc50": "Acc@0.5", "miou": "mIoU", "refusal_accuracy": "refused"}
    rows = [{"name": part.get("name"), **row} for part in trained for row in part["validation"]]
    console.table([{title: row.get(key) for key, title in names.items()} for row in rows])
    for part in trained:
        loss, used = part["loss"], part["token_utilization"]
        console.line(
            f"{stage.folder / part.get('name', '')}: {part['steps']} steps, loss {loss['first']:.3f} to "
            f"{loss['last']:.3f}, {part['adapted_layers']} layers adapted ({part['trained_parameters']:,} parameters, "
            f"{part['precision']}), {part['samples_per_second']:.1f} samples/s, {used:.0%} of the places held tokens"
        )
