"""The best adapter so far by its validation score, and the end of a run that no longer gets better.

The score is `eval_miou`, the mean IoU over the present objects: it moves with every box, where Acc@0.5 counts those
that cross a line. What has been seen so far is read from the trainer's own log, which resume points carry, so an
interrupted run decides as an undisturbed one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SCORE = "miou"
_KEY = f"eval_{SCORE}"


class BestAdapter(TrainerCallback):
    """Keeps the adapter of the best validation, the first of equals, and stops after `patience` worse ones.

    Args:
        folder: where the adapter goes; None keeps none.
        patience: validations without a better score to wait for; None never stops.
    """

    def __init__(self, folder: Path | None, patience: int | None) -> None:
        self._folder = folder
        self._patience = patience

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Look at a validation score as it is logged."""
        if _KEY not in (logs or {}):
            return
        best = best_validation(state.log_history)
        if best["step"] == state.global_step and self._folder is not None and state.is_world_process_zero:
            written = self._folder.with_name(self._folder.name + ".new")
            model.save_pretrained(str(written))
            shutil.rmtree(self._folder, ignore_errors=True)
            os.replace(written, self._folder)
        if self.is_over(state.log_history):
            control.should_training_stop = True

    def is_over(self, history: list[dict[str, float]]) -> bool:
        """Whether as many validations as it waits for have passed since the best one of a log."""
        scored = [entry["step"] for entry in history if _KEY in entry]
        if self._patience is None or not scored:
            return False
        best = best_validation(history)["step"]
        return sum(step > best for step in scored) >= self._patience


def best_validation(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the log entry of the best validation score, the first of equals."""
    return max((entry for entry in history if _KEY in entry), key=lambda entry: (entry[_KEY], -entry["step"]))
