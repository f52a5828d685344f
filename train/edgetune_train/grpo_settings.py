"""The knobs of GRPO, and how they become TRL's `GRPOConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from trl.trainer.grpo_config import GRPOConfig

from edgetune_runtime.errors import InputError
from edgetune_train.checkpoint import library_warnings_off
from edgetune_train.lora import LoraSettings
from edgetune_train.settings import FIXED, Precision, dtype_of, parse_trainer_args

DEFAULT_REWARDS: Mapping[str, float] = MappingProxyType({"format": 1.0, "iou": 1.0, "refusal": 1.0, "answer": 1.0})


@dataclass(frozen=True)
class GrpoSettings:
    """Everything that a GRPO run (arXiv 2402.03300) depends on besides its input files.

    Attributes:
        lora: the adapter's shape; None where one is trained further, which has its own.
        rewards: weight of each reward, see `edgetune_train.rewards.REWARDS`; those of weight 0 are left out.
        generations: answers that are sampled for a record and compared with each other.
        temperature: of the sampling.
        max_tokens: of an answer; None is the longest target of the data and half as much again.
        beta: weight of the divergence (KL) from where training started; 0 does without.
        clip: the policy's ratio is clipped to 1 - clip, 1 + clip (epsilon).
        clip_high: the upper clip where it is another one (arXiv 2503.14476), or None.
        epochs: passes over the records.
        batch_size: records per device and step, each with all its answers.
        accumulate: steps whose gradients are added up before the optimizer moves; their answers are sampled together.
        learning_rate: its peak; a linear warm-up over 3 % of the steps, then a cosine to zero.
        precision: as `TrainSettings.precision`.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        checkpoint_steps: optimizer steps between two checkpoints that an interrupted run continues from.
        val_limit: records of the validation file that are scored after each epoch.
        cache_mb: memory for preprocessed images, in MiB.
        trainer_args: further fields of `GRPOConfig`.
        seed: of initial weights, the order of records, and the sampling.
    """

    lora: LoraSettings | None = None
    rewards: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_REWARDS))
    generations: int = 8
    temperature: float = 1.0
    max_tokens: int | None = None
    beta: float = 0.0
    clip: float = 0.2
    clip_high: float | None = None
    epochs: float = 1.0
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-5
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = 50
    val_limit: int = 200
    cache_mb: int = 2048
    trainer_args: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


_OPTION_OF_FIELD = {
    "output_dir": "--output",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--accumulate",
    "learning_rate": "--learning-rate",
    "num_generations": "--generations",
    "max_completion_length": "--max-tokens",
    "temperature": "--temperature",
    "beta": "--beta",
    "epsilon": "--clip",
    "epsilon_high": "--clip-high",
    "reward_weights": "--reward",
    "bf16": "--precision",
    "gradient_checkpointing": "--gradient-checkpointing",
    "save_steps": "--checkpoint-steps",
    "seed": "--seed",
}
# Fields that decide how many answers are sampled when; resume points rely on it.
_FIXED = {"generation_batch_size", "num_generations_eval", "per_device_eval_batch_size", "steps_per_generation"}


def parse_grpo_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` texts as fields of `GRPOConfig`, as `settings.parse_trainer_args` does.

    Raises:
        InputError: as there.
    """
    return parse_trainer_args(pairs, GRPOConfig, options=_OPTION_OF_FIELD, fixed=FIXED | _FIXED)


def grpo_arguments(
    settings: GrpoSettings, folder: Path, *, max_tokens: int, weights: list[float], validate: bool
) -> GRPOConfig:
    """Return the arguments of TRL's `GRPOTrainer`.

    Args:
        settings: the run's settings.
        folder: where the checkpoints to resume from go.
        max_tokens: of a sampled answer.
        weights: of the rewards, in the order in which the trainer gets them.
        validate: score the validation records after each epoch.

    Raises:
        InputError: TRL refuses a value.
    """
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        # TRL counts answers, not records: a batch is whole groups.
        "per_device_train_batch_size": settings.batch_size * settings.generations,
        "gradient_accumulation_steps": settings.accumulate,
        "num_generations": settings.generations,
        "max_completion_length": max_tokens,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "epsilon": settings.clip,
        "epsilon_high": settings.clip_high,
        "reward_weights": weights,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "bf16": dtype_of(settings.precision) == torch.bfloat16,
        "use_cpu": not torch.accelerator.is_available(),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": 1,
        "eval_strategy": "epoch" if validate else "no",
        "per_device_eval_batch_size": settings.batch_size * settings.generations,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "log_level": "error",
        "seed": settings.seed,
        **settings.trainer_args,
    }
    try:
        with library_warnings_off():
            arguments = GRPOConfig(**values)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"TRL refuses the training arguments: {error}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs without a launcher would mean DataParallel
    return arguments
