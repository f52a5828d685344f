"""When a run logs and validates: before it writes a resume point, so that what continues there lacks nothing."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


class Rhythm(TrainerCallback):
    """Logs the loss at every resume point and at the end of every epoch, and validates at the latter.

    `Trainer` validates after an epoch, when the resume point of its last step is already written: a run that is
    continued from there would go without that validation, and with another random state.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide what follows this step, after `Trainer` has."""
        # The last step of an epoch leaves an exact integer: it is n/n of the epoch further.
        ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        control.should_log |= control.should_save or ends
        if ends and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_evaluate = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave out what the last step has done."""
        if args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_evaluate = False
