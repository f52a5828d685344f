"""`edgetune grpo`: an adapter trained further on its own answers, rewarded for their boxes."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, suggestion, verb
from edgetune_core.stage import StageResult, run_stage
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_train.grpo_settings import GrpoSettings

_POSITIVE = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)


@verb(writes=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Hugging Face folder of the base.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Adapter to start from, as `train` writes it.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Training records, in any format that data convert reads.",
)
@click.option("--val", type=click.Path(path_type=Path), help="Records that are scored after each epoch.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write the adapter to.")
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME=WEIGHT", help="Weight of format, iou, refusal or answer."
)
@click.option("--generations", type=click.IntRange(min=2), default=8, help="Answers sampled for each record.")
@click.option("--temperature", type=_POSITIVE, default=1.0, help="Of the sampling.")
@click.option("--max-tokens", type=_COUNT, help="Of an answer; the longest target and half as much again if not given.")
@click.option("--beta", type=click.FloatRange(min=0), default=0.0, help="Weight of the divergence from the start (KL).")
@click.option("--clip", type=_POSITIVE, default=0.2, help="How far a token's probability ratio counts (epsilon).")
@click.option("--clip-high", type=_POSITIVE, help="Another upper bound for it.")
@click.option("--epochs", type=_POSITIVE, default=1.0, help="Passes over the records.")
@click.option("--batch-size", type=_COUNT, default=4, help="Records per device and step, each with all its answers.")
@click.option("--accumulate", type=_COUNT, default=1, help="Steps added up per optimizer step.")
@click.option("--learning-rate", type=_POSITIVE, default=2e-5, help="Peak of the schedule.")
@click.option("--rank", type=_COUNT, help="LoRA rank of a new adapter.  [default: 16]")
@click.option("--alpha", type=_COUNT, help="LoRA alpha of a new adapter.  [default: 32]")
@click.option("--target", "targets", multiple=True, help="Layers that a new adapter adapts, as in `train`. Repeatable.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    help="What the base is held and computed in; auto is bf16 where the hardware has it.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Trade time for memory in the backward pass.")
@click.option("--checkpoint-steps", type=_COUNT, default=50, help="Steps between resume points.")
@click.option("--limit", type=_COUNT, help="Train on the first N records only.")
@click.option("--val-limit", type=_COUNT, default=200, help="Validation records to score.")
@click.option("--allow-overlap", is_flag=True, help="Accept validation images that are trained on.")
@click.option("--allow-text-boxes", is_flag=True, help="Learn boxes that answers hold as text as they stand there.")
@click.option("--cache-mb", type=click.IntRange(min=0), default=2048, help="Memory for preprocessed images, in MiB.")
@click.option("--seed", type=int, default=0, help="Seed of initial weights, order and sampling.")
@click.option(
    "--trainer-arg", "trainer_args", multiple=True, metavar="KEY=VALUE", help="Any field of TRL's GRPOConfig."
)
def command(
    console: Console,
    checkpoint: Path,
    adapter: Path | None,
    data: Path,
    val: Path | None,
    output: Path,
    limit: int | None,
    allow_overlap: bool,
    allow_text_boxes: bool,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train an adapter on its own sampled answers and what their boxes earn (GRPO, through TRL).

    The same command continues an interrupted run from its last resume point.
    """
    from edgetune_data.read import load, stage_inputs
    from edgetune_data.text_boxes import refuse
    from edgetune_runtime.records import scored
    from edgetune_train.adapter import Adapter
    from edgetune_train.checkpoint import Checkpoint
    from edgetune_train.grpo import grpo
    from edgetune_train.inputs import check_disjoint, image_hashes, tree_hash
    from edgetune_train.launch import main_process, work_folder

    settings = _settings(options, new_adapter=adapter is None)
    base = Checkpoint.open(checkpoint)
    start = Adapter.open(adapter) if adapter else None
    if start:
        start.check_base(base)
    records = scored(load(data), data)[:limit]
    val_records = scored(load(val), val) if val else []
    if not allow_text_boxes:
        refuse(records)
    images = image_hashes([*records, *val_records])
    if val_records and not allow_overlap:
        remark = check_disjoint(records, val_records)
        if remark:
            console.note(remark)

    def build(folder: Path) -> dict[str, Any]:
        return grpo(base, start, records, val_records, settings, folder)

    inputs = {"checkpoint": checkpoint} | ({"adapter": adapter} if adapter else {})
    inputs |= stage_inputs("data", data) | (stage_inputs("val", val) if val else {})
    stage = partial(
        run_stage,
        "grpo",
        output,
        inputs=inputs,
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


def _settings(options: dict[str, Any], *, new_adapter: bool) -> GrpoSettings:
    """Return the stage's settings from the options of the same names."""
    from edgetune_train.grpo_settings import GrpoSettings, parse_grpo_args
    from edgetune_train.lora import LoraSettings

    shape = {name: value for name in ("rank", "alpha", "targets") if (value := options.pop(name))}
    if shape and not new_adapter:
        raise InputError(
            f"--{next(iter(shape)).removesuffix('s')}: the adapter to start from has its own",
            hint="leave it out, or leave out --adapter",
        )
    rewards, trainer_args = _rewards(options.pop("rewards")), parse_grpo_args(options.pop("trainer_args"))
    lora = LoraSettings(**shape) if new_adapter else None
    return GrpoSettings(lora=lora, rewards=rewards, trainer_args=trainer_args, **options)


def _rewards(pairs: tuple[str, ...]) -> dict[str, float]:
    """Return the weight of each reward; those that are not named keep theirs."""
    from edgetune_train.grpo_settings import DEFAULT_REWARDS

    weights = dict(DEFAULT_REWARDS)
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in weights:
            raise InputError(f"--reward {pair}: no reward of this name.{suggestion(name, weights)}")
        try:
            weights[name] = float(text)
        except ValueError:
            raise InputError(f"--reward {pair}: must look like {name}=1.5") from None
        if not 0 <= weights[name] < float("inf"):
            raise InputError(f"--reward {pair}: a weight is 0 or more")
    if not any(weights.values()):
        raise InputError("--reward: all weights are 0, so there is nothing to learn from")
    return weights


def _report(console: Console, stage: StageResult, records: int, *, dry_run: bool) -> None:
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
        return
    if dry_run:
        console.line(f"{stage.folder}: would train on {records} records")
        return
    result = stage.manifest["result"]
    names = {"epoch": "epoch", "acc50": "Acc@0.5", "miou": "mIoU", "refusal_accuracy": "refused"}
    console.table([{title: row.get(key) for key, title in names.items()} for row in result["validation"]])
    earned = ", ".join(
        f"{name} {mean['first']:.3f} to {mean['last']:.3f}" for name, mean in result["rewards"].items() if mean
    )
    console.line(
        f"{stage.folder}: {result['steps']} steps, rewards: {earned} ({result['trained_parameters']:,} parameters, "
        f"{result['precision']}), {result['samples_per_second']:.1f} records/s"
    )
