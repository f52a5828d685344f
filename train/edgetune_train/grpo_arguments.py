"""The settings of a GRPO run as TRL's `GRPOConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from edgetune_train.arguments import FIXED, OPTION_OF_FIELD, make_arguments, parse_trainer_args
from edgetune_train.settings import GrpoSettings

_OPTION_OF_FIELD = OPTION_OF_FIELD | {
    "num_generations": "--generations",
    "max_completion_length": "--max-tokens",
    "temperature": "--temperature",
    "beta": "--beta",
    "epsilon": "--clip",
    "epsilon_high": "--clip-high",
    "reward_weights": "--reward",
}
# Fields that decide how many answers are sampled when; resume points rely on it.
_FIXED = {"generation_batch_size", "num_generations_eval", "per_device_eval_batch_size", "steps_per_generation"}


def parse_grpo_args(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's fields of `GRPOConfig`, as `arguments.parse_trainer_args` does.

    Raises:
        InputError: as there.
    """
    return parse_trainer_args(given, GRPOConfig, options=_OPTION_OF_FIELD, fixed=FIXED | _FIXED)


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
    values = {
        # TRL counts answers, not records: a batch is whole groups.
        "per_device_train_batch_size": settings.batch_size * settings.generations,
        "per_device_eval_batch_size": settings.batch_size * settings.generations,
        "num_generations": settings.generations,
        "max_completion_length": max_tokens,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "epsilon": settings.clip,
        "epsilon_high": settings.clip_high,
        "reward_weights": weights,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": 1,
    }
    return make_arguments(GRPOConfig, "TRL", settings, folder, values, validate=validate)
