"""transformers' `Trainer` with our loss, a grounding score added to its evaluation, and an end where it diverges."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from edgetune_runtime.errors import DivergenceError, InputError
from edgetune_runtime.json_file import read_json
from edgetune_train.ahead import BATCHES, ReadAhead
from edgetune_train.batch import IGNORE, SOURCES
from edgetune_train.objective import Objective, answer_loss
from edgetune_train.packing import Packs
from edgetune_train.vision import THREADS

Scorer = Callable[[Any], dict[str, float]]


class FiniteTraining(Trainer):
    """Ends at the first optimizer step whose loss or gradient is not finite, before its weights are changed.

    `Trainer` itself would log an average in place of such a loss and go on.
    """

    def __init__(self, *arguments: Any, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self.args.logging_nan_inf_filter = False  # what it looks at is looked at here
        self._step_records: list[str] = []
        self._bad_loss: float | None = None

    def records_of(self, inputs: Any) -> list[str]:
        """Return where the records of a batch stand, such as "data.jsonl:17"."""
        sources: list[str] = inputs[SOURCES]
        return sources

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of a batch, and remember it if it is not finite."""
        records = self.records_of(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self._bad_loss is None:
            if math.isfinite(value := float(loss)):
                self._step_records += records
            else:
                self._bad_loss, self._step_records = value, records
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of an optimizer step's gradient, over all processes, so that they end together.

        Raises:
            DivergenceError: it is not finite, or the loss of a batch of the step was not.
        """
        measure: Any = super()._get_grad_norm
        norm = measure(model, grad_norm)
        if self._bad_loss is None and (norm is None or math.isfinite(float(norm))):
            self._step_records = []
            return norm
        what = f"gradient is {float(norm)}" if self._bad_loss is None else f"loss is {self._bad_loss}"
        records = list(dict.fromkeys(self._step_records))
        some = ", ".join(records[:8]) + (f" and {len(records) - 8} more" if len(records) > 8 else "")
        step = self.state.global_step + 1
        causes = (
            "weights of the base that are not finite, or --precision" if step == 1 else "too high a --learning-rate"
        )
        raise DivergenceError(
            f"step {step} of {self.state.max_steps}: the {what}, on the records {some}",
            hint=f"look for {causes}; no adapter was written",
        )


class GroundingTrainer(FiniteTraining):
    """Trains as `Trainer` does, on the mean over the learned tokens of a whole optimizer step.

    Pictures of the next batches are read while one computes, see `ReadAhead`; worker processes that `args` ask for make
    whole batches instead. `evaluate` also generates answers and scores their boxes. Training logs tell which share of
    the places that were computed held tokens.

    Args:
        objective: the loss, see `Objective`.
        loraplus_ratio: learning rate of LoRA's B over that of A; None is one for both.
        scorer: takes the model in evaluation mode and returns figures such as {"acc50": 0.8}; None leaves
            the evaluation loss alone.
        rest: the arguments of `Trainer`.
    """

    def __init__(
        self,
        *,
        scorer: Scorer | None,
        objective: Objective = answer_loss,
        loraplus_ratio: float | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self._loraplus_ratio = loraplus_ratio
        self._scorer = scorer
        self._objective = objective
        self._places = 0
        self._tokens: torch.Tensor | int = 0
        self.model_accepts_loss_kwargs = True  # has `Trainer` count the learned tokens of an optimizer step
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: ReadAhead | None = None

    def train(self, *arguments: Any, **rest: Any) -> Any:
        """Train, with threads that read ahead."""
        self._threads = ThreadPoolExecutor(THREADS, "read-ahead") if self.args.dataloader_num_workers == 0 else None
        try:
            return super().train(*arguments, **rest)
        finally:
            if self._threads is not None:  # what was not begun is not worth waiting for
                self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = self._ahead = None

    def get_train_dataloader(self) -> Any:
        """Return the loader of training batches; of what they are made of, where their pictures are read ahead."""
        collate: Any = self.data_collator
        if self._threads is not None:
            self.data_collator = _as_it_is
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of an optimizer step, and how many learned tokens they have."""
        if self._threads is not None:
            if self._ahead is None or self._ahead.rows is not epoch_iterator:
                batches = max(BATCHES, self.args.gradient_accumulation_steps)
                collate: Any = self.data_collator
                self._ahead = ReadAhead(epoch_iterator, collate, self._threads, batches)
            epoch_iterator = self._ahead
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return this batch's share of the optimizer step's loss, or in evaluation its own loss, by the objective.

        Args:
            model: takes the batch without its labels and sources.
            inputs: a batch of `Collator`.
            return_outputs: return the model's outputs as well.
            num_items_in_batch: learned tokens of the whole step, on all devices.
        """
        outputs = model(
            **{key: value for key, value in inputs.items() if not key.endswith("labels") and key != SOURCES}
        )
        if model.training and num_items_in_batch is not None:
            loss = self._objective(outputs.logits, inputs, num_items_in_batch)
            loss = loss * self.accelerator.num_processes  # for the processes' gradients are averaged
            self._count(inputs)
        else:
            loss = self._objective(outputs.logits, inputs, (inputs["labels"] != IGNORE).sum())
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the optimizer, with LoRA+'s learning rates where they are asked for."""
        if self._loraplus_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        model = self.model if model is None else model
        optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = create_loraplus_optimizer(
            model,
            optimizer,
            loraplus_lr_ratio=self._loraplus_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter; of weights that are divided over processes, what is trained is gathered here.

        Every process takes part under FSDP.
        """
        if self.is_fsdp_enabled:
            assert self.model is not None
            trained = {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}
            state_dict = {
                name: tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor  # a copy has arrived
                for name, tensor in trained.items()
            }
        super()._save(output_dir, state_dict)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the training set: that of the packs, which are shuffled when they are made."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if isinstance(dataset, Packs) else super()._get_train_sampler(train_dataset)

    def _count(self, inputs: dict[str, Any]) -> None:
        """Add a batch to the tokens, and to the places that a batch of its kind takes."""
        if "attention_mask" in inputs:
            self._tokens += inputs["attention_mask"].sum()  # on its device: reading it here would wait for the step
            self._places += inputs["attention_mask"].numel()
        else:
            self._tokens += inputs["input_ids"].numel()
            assert isinstance(self.train_dataset, Packs)
            self._places += self.train_dataset.length

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures; those of training steps with the token utilization since the last ones."""
        if "loss" in logs and self._places:
            logs["token_utilization"] = round(int(self._tokens) / self._places, 4)
            self._tokens = self._places = 0
            logs |= getattr(self._objective, "figures", dict)()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the evaluation loss and the scores, and log them for this step."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self._scorer is not None:
            model = self.accelerator.unwrap_model(self.model)
            was_training = model.training
            model.eval()
            with self.compute_loss_context_manager():  # computes as training does: in bfloat16 where that is so
                found = self._scorer(model)
            scores = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            model.train(was_training)
            self.log(scores)
            metrics |= scores
        return metrics


def _as_it_is(rows: Any) -> Any:
    return rows


def logged_until(checkpoint: Path) -> list[dict[str, float]]:
    """Return what the run had logged when it wrote a checkpoint."""
    history: list[dict[str, float]] = read_json(checkpoint / TRAINER_STATE_NAME, finite=False)["log_history"]
    return history


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of an interrupted run.

    Trainer writes the trainer state last, so a folder without a readable one was being written when the run was killed.
    """

    def step(path: Path) -> int:
        return int(path.name.rpartition("-")[2])

    found = (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit())
    for path in sorted(found, key=step, reverse=True):
        try:
            read_json(path / TRAINER_STATE_NAME, finite=False)
        except (OSError, InputError):
            continue
        return path
    return None
