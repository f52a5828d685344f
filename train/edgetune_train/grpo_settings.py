"""The knobs of GRPO, and how they become TRL's `GRPOConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from edgetune_train.lora import LoraSettings
from edgetune_train.settings import FIXED, OPTION_OF_FIELD, RunSettings, make_arguments, parse_trainer_args

DEFAULT_REWARDS: Mapping[str, float] = MappingProxyType({"format": 1.0, "iou": 1.0, "refusal": 1.0, "answer": 1.0})


@dataclass(frozen=True)
class GrpoSettings(RunSettings):
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
        batch_size: records per device and step, each with all its answers.
        accumulate: steps whose gradients are added up; their answers are sampled together.
        cache_mb: memory for preprocessed images, in MiB.
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
    learning_rate: float = 2e-5
    checkpoint_steps: int = 50


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
