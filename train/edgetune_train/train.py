"""The train stage: a LoRA adapter from a checkpoint and records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import get_peft_model
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from edgetune_runtime.conversation import prepare
from edgetune_runtime.records import Record
from edgetune_train.batch import Collator
from edgetune_train.checkpoint import Checkpoint, library_warnings_off, weights_sha256
from edgetune_train.lora import in_vision, lora_config, resolve_targets
from edgetune_train.progress import Progress
from edgetune_train.score import SCORES, GroundingScorer
from edgetune_train.settings import TrainSettings, dtype_of, training_arguments
from edgetune_train.trainer import GroundingTrainer, last_checkpoint
from edgetune_train.vision import FeatureInputs, ImageInputs, PixelInputs

LOG = "log.jsonl"
_CHECKPOINTS = "checkpoints"


def train(
    checkpoint: Checkpoint, records: Sequence[Record], val: Sequence[Record], settings: TrainSettings, folder: Path
) -> dict[str, Any]:
    """Train an adapter into `folder`, continuing from the checkpoints that an interrupted run left there.

    Writes adapter_model.safetensors, adapter_config.json, and logs/ (TensorBoard events and log.jsonl with every
    logged figure).

    Args:
        checkpoint: the base.
        records: what to train on.
        val: held-out records, scored after each epoch; may be empty.
        settings: everything else.
        folder: an existing folder.

    Returns:
        The manifest's `result`: the base's weights_sha256, losses, scores, speed and sizes.

    Raises:
        InputError: a target matches nothing, a record cannot be used, or transformers refuses an argument.
    """
    arguments = training_arguments(settings, folder / _CHECKPOINTS, validate=bool(val))
    facts = (checkpoint.family, checkpoint.spec, checkpoint.tokenizer)
    samples = prepare(tqdm(records, desc="prepare", unit="record", disable=None, delay=2), *facts)
    val_samples = prepare(val[: settings.val_limit], *facts)
    set_seed(settings.seed)
    model = checkpoint.load_model(dtype_of(settings.precision))
    names = resolve_targets(model, checkpoint.modules, settings.lora.targets, vision=settings.lora.vision)
    vision_is_frozen = not any(in_vision(name, checkpoint.modules) for name in names)
    budget = settings.cache_mb << 20
    images: ImageInputs = PixelInputs(checkpoint.spec, budget)
    if vision_is_frozen and _in_one_process(arguments):
        images = FeatureInputs(model, checkpoint.spec, budget)
    with library_warnings_off():
        model = get_peft_model(model, lora_config(model, names, settings.lora))
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()  # or the frozen embeddings would cut the graph before the first block
    collate = Collator.of(checkpoint, images)
    scorer = GroundingScorer(checkpoint, val_samples, collate, settings.batch_size)
    progress = Progress()
    callbacks: list[Any] = [progress]
    if arguments.process_index == 0:
        board: Any = TensorBoardCallback
        callbacks.append(board(SummaryWriter(str(folder / "logs"))))
    trainer = GroundingTrainer(
        scorer=scorer if scorer.samples and _is_unsharded(arguments) else None,
        model=model,
        args=arguments,
        train_dataset=samples,
        eval_dataset=val_samples or None,
        data_collator=collate,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    resume = last_checkpoint(folder / _CHECKPOINTS)
    with library_warnings_off():
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    _save(trainer, folder)
    return {
        "family": checkpoint.family.name,
        "base_weights_sha256": weights_sha256(checkpoint.folder),
        "records": len(records),
        "steps": trainer.state.global_step,
        "resumed_from_step": progress.first_step,
        **_figures(trainer.state.log_history),
        "samples_per_second": round(progress.samples_per_second, 2),
        "precision": str(dtype_of(settings.precision)).removeprefix("torch."),
        "adapted_layers": len(names),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _in_one_process(arguments: TrainingArguments) -> bool:
    """Whether the collator may run the model: it is in the training process, and its weights are whole."""
    return arguments.dataloader_num_workers == 0 and _is_unsharded(arguments)


def _is_unsharded(arguments: TrainingArguments) -> bool:
    return not (arguments.fsdp or arguments.deepspeed)


def _save(trainer: GroundingTrainer, folder: Path) -> None:
    """Write the adapter and the log; drop what only an interrupted run needs."""
    written = folder / _CHECKPOINTS / "final"
    trainer.save_model(str(written))  # every rank takes part: sharded weights are gathered here
    if not trainer.is_world_process_zero():
        return
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.move(written / name, folder / name)
    with (folder / "logs" / LOG).open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    shutil.rmtree(folder / _CHECKPOINTS)


def _figures(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the training loss, first and last, and the figures of each validation."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validations: dict[float, dict[str, float]] = {}
    for entry in history:
        names = ["loss", *SCORES]
        found = {name: entry[f"eval_{name}"] for name in names if f"eval_{name}" in entry}
        if found:
            validations.setdefault(entry["epoch"], {"epoch": entry["epoch"]}).update(found)
    return {"loss": {"first": losses[0], "last": losses[-1]}, "validation": list(validations.values())}
