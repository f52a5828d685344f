"""The settings of a training as transformers' `TrainingArguments`, and as TRL's `GRPOConfig`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from edgetune_core.checkpoint import library_warnings_off
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import decode_json
from edgetune_train.settings import Precision, RunSettings, TrainSettings

Arguments = TypeVar("Arguments", bound=TrainingArguments)

OPTION_OF_FIELD = {
    "output_dir": "--output",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--accumulate",
    "learning_rate": "--learning-rate",
    "bf16": "--precision",
    "gradient_checkpointing": "--gradient-checkpointing",
    "save_steps": "--checkpoint-steps",
    "seed": "--seed",
}
# Fields that this program relies on; another value would break resuming, scoring or the folder it writes.
FIXED = {
    "average_tokens_across_devices",
    "dataloader_pin_memory",
    "disable_tqdm",
    "label_names",
    "load_best_model_at_end",
    "push_to_hub",
    "remove_unused_columns",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "resume_from_checkpoint",
    "save_only_model",
    "save_strategy",
}


def parse_trainer_args(
    given: Mapping[str, Any],
    arguments: type[TrainingArguments] = TrainingArguments,
    *,
    options: Mapping[str, str] = OPTION_OF_FIELD,
    fixed: Collection[str] = FIXED,
) -> dict[str, Any]:
    """Return the user's fields of `TrainingArguments`.

    A text is read as JSON where it is JSON (`true`, `4`, `{"min_lr": 1e-5}`) and stays a text otherwise.

    Args:
        given: field -> its value.
        arguments: the class whose fields they are.
        options: fields that have an option of their own, and its name.
        fixed: fields that must stay as they are.

    Raises:
        InputError: no such field, a field that has an option of its own, or one that must stay as it is.
    """
    known = {item.name for item in dataclasses.fields(arguments) if item.init}
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in options:
            raise InputError(f"--trainer-arg {key}: has an option of its own", hint=f"use {options[key]}")
        if key in fixed:
            raise InputError(f"--trainer-arg {key}: cannot be changed, edgetune relies on it")
        if key not in known:
            near = difflib.get_close_matches(key, known - set(fixed), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see {arguments.__name__} for the fields"
            raise InputError(f"--trainer-arg {key}: {arguments.__name__} has no such field", hint=hint)
        found[key] = value
        if isinstance(value, str):
            with contextlib.suppress(InputError):
                found[key] = decode_json(value, finite=False)
    return found


def training_arguments(settings: TrainSettings, folder: Path, *, validate: bool) -> TrainingArguments:
    """Return the arguments of transformers' `Trainer`.

    Args:
        settings: the run's settings.
        folder: where the checkpoints to resume from go.
        validate: score the validation records after each epoch.

    Raises:
        InputError: transformers refuses a value.
    """
    values: dict[str, Any] = {
        "per_device_train_batch_size": 1 if settings.pack else settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "weight_decay": 0.0,
        "logging_steps": 10,
        "logging_first_step": True,
        "label_names": ["labels"],
    }
    forced: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        forced = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return make_arguments(TrainingArguments, "transformers", settings, folder, values, forced, validate=validate)


def make_arguments(
    kind: type[Arguments],
    owner: str,
    settings: RunSettings,
    folder: Path,
    values: Mapping[str, Any],
    forced: Mapping[str, Any] = MappingProxyType({}),
    *,
    validate: bool,
) -> Arguments:
    """Return the arguments of a trainer: what every run has, `values`, the user's own, and what is `forced`.

    Args:
        kind: the class of the arguments.
        owner: whose it is, for the message.
        settings: the run's settings.
        folder: where the checkpoints to resume from go.
        values: the fields of this kind of training.
        forced: fields that no `trainer_args` change.
        validate: score the validation records after each epoch.

    Raises:
        InputError: the class refuses a value.
    """
    common = {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "bf16": dtype_of(settings.precision) == torch.bfloat16,
        "use_cpu": not torch.accelerator.is_available(),
        "eval_strategy": "epoch" if validate else "no",
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        # The features of a frozen tower travel in a transformers output, which cannot be pinned; and nothing is gained
        # where batches are made in the training process.
        "dataloader_pin_memory": False,
        "log_level": "error",
        "seed": settings.seed,
    }
    try:
        with library_warnings_off():
            arguments = kind(**{**common, **values, **settings.trainer_args, **forced})
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{owner} refuses the training arguments: {error}") from error
    # Several visible GPUs without a launcher would mean DataParallel, which cannot split a batch of image patches.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype that the base is held and computed in."""
    if precision == "auto":
        if torch.cuda.is_available():
            native = torch.cuda.is_bf16_supported()
        else:
            native = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        return torch.bfloat16 if native else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
