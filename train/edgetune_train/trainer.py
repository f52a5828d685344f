"""transformers' `Trainer` with a grounding score added to its evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

Scorer = Callable[[Any], dict[str, float]]


class GroundingTrainer(Trainer):
    """Trains as `Trainer` does; `evaluate` also generates answers and scores their boxes.

    Args:
        scorer: takes the model in evaluation mode and returns figures such as {"acc50": 0.8}; None leaves
            the evaluation loss alone.
        rest: the arguments of `Trainer`.
    """

    def __init__(self, *, scorer: Scorer | None, **rest: Any) -> None:
        super().__init__(**rest)
        self._scorer = scorer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the evaluation loss and the scores, and log them for this step."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self._scorer is not None:
            model = self.accelerator.unwrap_model(self.model)
            was_training = model.training
            model.eval()
            scores = {f"{metric_key_prefix}_{name}": value for name, value in self._scorer(model).items()}
            model.train(was_training)
            self.log(scores)
            metrics |= scores
        return metrics


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of an interrupted run.

    Trainer writes the trainer state last, so a folder without a readable one was being written when the run was killed.
    """

    def step(path: Path) -> int:
        return int(path.name.rpartition("-")[2])

    found = (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit())
    for path in sorted(found, key=step, reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        return path
    return None
