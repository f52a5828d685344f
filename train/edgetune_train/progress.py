"""When a training run logs and validates, and what is seen of it: loss, learning rate, speed, time left."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


class Progress(TrainerCallback):
    """One bar over all optimizer steps, on stderr, silent when that is not a terminal.

    Args:
        records_per_batch: how many records a device's batch holds, on average.

    Attributes:
        first_step: the step that this process started from; above 0 it continued an interrupted run.
        samples_per_second: since then, over all devices, validation included.
    """

    def __init__(self, records_per_batch: float) -> None:
        self._records = records_per_batch
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}
        self._began = 0.0
        self.first_step = 0
        self.samples_per_second = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar, at the step that the run continues from."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=None, delay=2
            )
        self._began, self.first_step = perf_counter(), state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar and measure the speed since the start."""
        batch = self._records * args.gradient_accumulation_steps * args.world_size
        self.samples_per_second = (state.global_step - self.first_step) * batch / (perf_counter() - self._began)
        if self._bar is not None:
            self._shown["samples/s"] = f"{self.samples_per_second:.1f}"
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest of each figure."""
        names = {"loss": "loss", "learning_rate": "lr", "eval_acc50": "Acc@0.5", "eval_miou": "mIoU"}
        self._shown |= {names[key]: f"{value:.3g}" for key, value in (logs or {}).items() if key in names}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class LogSchedule(TrainerCallback):
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
