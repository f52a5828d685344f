"""The train stage: a LoRA adapter from a checkpoint and records."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off, weights_sha256
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.errors import InputError
from edgetune_runtime.records import AnyRecord
from edgetune_train.adapt import adapted_model
from edgetune_train.arguments import dtype_of, training_arguments
from edgetune_train.batch import Collator, blank_sample
from edgetune_train.best import SCORE, BestAdapter, best_validation
from edgetune_train.box_loss import BoxAware, BoxLocator
from edgetune_train.folder import BEST, CHECKPOINTS, save_adapter
from edgetune_train.launch import is_sharded, parallel
from edgetune_train.objective import answer_loss
from edgetune_train.packing import Packs
from edgetune_train.progress import LogSchedule, Progress
from edgetune_train.score import SCORES, GroundingScorer
from edgetune_train.settings import TrainSettings
from edgetune_train.trainer import GroundingTrainer, last_checkpoint, logged_until

log = logging.getLogger("edgetune")

FEW_STEPS = 30
"""What rounding to bfloat16 takes of an adapter falls as its steps add up. After two at the default learning rate it
was 67 % on the example model, so with fewer than this it is about a twentieth or more."""


def train(
    checkpoint: HubCheckpoint,
    records: Sequence[AnyRecord],
    val: Sequence[AnyRecord],
    settings: TrainSettings,
    folder: Path,
    *,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train an adapter into `folder`, continuing from the checkpoints that an interrupted run left there.

    Writes adapter_model.safetensors, adapter_config.json, and logs/ (TensorBoard events and log.jsonl with every
    logged figure).

    Args:
        checkpoint: the base, whose chat template is that of its family.
        records: what to train on.
        val: held-out records, scored after each epoch; may be empty.
        settings: everything else.
        folder: an existing folder.
        start: the folder of an adapter of the same shape to start from, else a new one.

    Returns:
        The manifest's `result`: the base's weights_sha256, losses, scores, speed and sizes.

    Raises:
        InputError: a target matches nothing, a record cannot be used, or transformers refuses an argument.
        MissingDependency: a library that a setting needs is not installed.
    """
    arguments = training_arguments(settings, folder / CHECKPOINTS, validate=bool(val))
    facts = (checkpoint.family, checkpoint.spec, checkpoint.tokenizer)
    samples = prepare(tqdm(records, desc="prepare", unit="record", disable=None, delay=2), *facts)
    val_samples = prepare(val[: settings.val_limit], *facts)
    data = _packs(samples, settings, arguments) if settings.pack else samples
    set_seed(settings.seed)
    adapted = adapted_model(checkpoint, settings, arguments, start=start)
    boxes = BoxLocator.of(checkpoint, samples) if settings.box_loss else None
    blank = blank_sample(samples) if arguments.world_size > 1 else None
    collate = Collator.of(checkpoint, adapted.images, segments=adapted.segments, boxes=boxes, blank=blank)
    scorer = GroundingScorer(checkpoint, val_samples, collate, settings.batch_size)
    scored = bool(scorer.samples) and not is_sharded(arguments)
    if not scored and (settings.keep == "best" or settings.early_stop is not None):
        raise InputError(
            "--keep best and --early-stop go by the grounding score, which is not measured here",
            hint="give --val a file with grounding records; with FSDP or DeepSpeed validation is by loss alone",
        )
    progress = Progress(len(samples) / len(data) if settings.pack else settings.batch_size)
    callbacks: list[Any] = [LogSchedule(), progress]
    if scored:
        callbacks.append(BestAdapter(folder / BEST if settings.keep == "best" else None, settings.early_stop))
    if arguments.process_index == 0:
        board: Any = TensorBoardCallback
        callbacks.append(board(SummaryWriter(str(folder / "logs"))))
    resume = last_checkpoint(folder / CHECKPOINTS)
    if resume and BestAdapter(None, settings.early_stop).is_over(logged_until(resume)):
        arguments.max_steps = int(resume.name.rpartition("-")[2])  # stopped before it was interrupted
    trainer = GroundingTrainer(
        objective=BoxAware(settings.box_loss) if settings.box_loss else answer_loss,
        scorer=scorer if scored else None,
        loraplus_ratio=settings.loraplus_ratio,
        model=adapted.model,
        args=arguments,
        train_dataset=data,
        eval_dataset=val_samples or None,
        data_collator=collate,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    together = parallel(trainer)
    if is_sharded(arguments) and together["kind"] not in ("fsdp", "deepspeed"):
        raise InputError(
            f"FSDP or DeepSpeed was asked for, but accelerate runs {together['kind']}: it shards on GPUs only"
        )
    if settings.compile and trainer.is_world_process_zero():
        log.warning("the first step compiles the language blocks, which takes up to a minute")
    with library_warnings_off():
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_adapter(trainer, folder)
    if trainer.state.global_step < FEW_STEPS and trainer.is_world_process_zero():
        log.warning(
            f"only {trainer.state.global_step} optimizer steps: the adapter may be too small to survive being merged "
            "into rounded weights; use more --epochs or a higher --learning-rate"
        )
    history = trainer.state.log_history
    return {
        "family": checkpoint.family.name,
        "base_weights_sha256": weights_sha256(checkpoint.folder),
        "records": len(records),
        "steps": trainer.state.global_step,
        "resumed_from_step": progress.first_step,
        **_figures(history),
        **({"kept": _kept(history)} if settings.keep == "best" else {}),
        **({"packing": _packing(data, settings)} if isinstance(data, Packs) else {}),
        "parallel": together,
        "samples_per_second": round(progress.samples_per_second, 2),
        "precision": str(dtype_of(settings.precision)).removeprefix("torch."),
        "attention": adapted.attention,
        "adapted_layers": adapted.layers,
        "trained_parameters": adapted.trained_parameters,
        **_gpu_memory(),
    }


def _gpu_memory() -> dict[str, int | None]:
    """Return the most that tensors took of this process's GPU, and the most that torch had reserved for them."""
    on_gpu = torch.cuda.is_available()
    return {
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "reserved_gpu_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
    }


def _packs(samples: Sequence[Sample], settings: TrainSettings, arguments: TrainingArguments) -> Packs:
    """Return the training set in packs, planned for as many epochs as there will be."""
    epochs, processes = math.ceil(settings.epochs), arguments.world_size
    if arguments.max_steps > 0:  # then an epoch has at least the packs that its tokens fill
        fewest = sum(len(sample.ids) for sample in samples) / settings.pack
        epochs = math.ceil(arguments.max_steps * settings.accumulate * processes / max(1, math.floor(fewest)))
    return Packs(samples, settings.pack, seed=settings.seed, epochs=epochs, processes=processes)


def _figures(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the training loss, first and last, how full batches were, and the figures of each validation."""
    logged = [entry for entry in history if "loss" in entry]
    losses = [entry["loss"] for entry in logged]
    validations: dict[float, dict[str, float]] = {}
    for entry in history:
        names = ["loss", *SCORES]
        found = {name: entry[f"eval_{name}"] for name in names if f"eval_{name}" in entry}
        if found:
            validations.setdefault(entry["epoch"], {"epoch": entry["epoch"]}).update(found)
    return {
        "loss": {"first": losses[0], "last": losses[-1]},
        "token_utilization": round(sum(entry["token_utilization"] for entry in logged) / len(logged), 4),
        "validation": list(validations.values()),
    }


def _kept(history: list[dict[str, float]]) -> dict[str, float]:
    best = best_validation(history)
    return {"step": best["step"], "epoch": best["epoch"], SCORE: best[f"eval_{SCORE}"]}


def _packing(packs: Packs, settings: TrainSettings) -> dict[str, Any]:
    """Return how well the records fill the packs, and what padding would make of them."""
    return {
        "length": packs.length,
        "packs_per_epoch": len(packs),
        "records_per_pack": round(packs.records / len(packs), 2),
        "utilization": round(packs.utilization, 4),
        "utilization_padded": round(packs.padded_utilization(settings.batch_size), 4),
    }
