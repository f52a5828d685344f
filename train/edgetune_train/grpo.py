"""The grpo stage: an adapter trained on its own sampled answers and what they earn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PrinterCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off, weights_sha256
from edgetune_core.conversation import Sample, prepare, stop_ids
from edgetune_core.generation import forget_sampling
from edgetune_runtime.records import Record
from edgetune_train.arguments import dtype_of
from edgetune_train.batch import Collator
from edgetune_train.folder import CHECKPOINTS, save_adapter
from edgetune_train.grpo_arguments import grpo_arguments
from edgetune_train.launch import parallel
from edgetune_train.lora import lora_config, resolve_targets
from edgetune_train.progress import LogSchedule, Progress
from edgetune_train.prompts import SamplePrompts
from edgetune_train.rewards import REWARDS
from edgetune_train.score import SCORES, GroundingScorer, answer_text
from edgetune_train.settings import GrpoSettings
from edgetune_train.trainer import FiniteTraining, last_checkpoint
from edgetune_train.vision import PixelInputs


class GroundingGrpo(FiniteTraining, GRPOTrainer):
    """TRL's trainer, which evaluates by the score of greedy answers and not by rewards of sampled ones.

    Args:
        scorer: see `GroundingTrainer`.
        records: what the rows of the training set stand for.
        rest: the arguments of `GRPOTrainer`.
    """

    def __init__(self, *, scorer: GroundingScorer, records: Sequence[Record], **rest: Any) -> None:
        super().__init__(**rest)
        self._scorer = scorer
        self._records = records

    def records_of(self, inputs: Any) -> list[str]:
        """Return where the records of a batch stand, whose answers are sampled together."""
        return [self._records[row["image"]].source for row in inputs]

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Return the scores, and log them for this step."""
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        scores = {f"{metric_key_prefix}_{name}": value for name, value in self._scorer(model).items()}
        model.train()
        self.log(scores)
        return scores


def grpo(
    checkpoint: HubCheckpoint,
    adapter: Adapter | None,
    records: Sequence[Record],
    val: Sequence[Record],
    settings: GrpoSettings,
    folder: Path,
) -> dict[str, Any]:
    """Train an adapter into `folder`, continuing from the checkpoints that an interrupted run left there.

    Writes what `train` writes: adapter_model.safetensors, adapter_config.json, logs/.

    Args:
        checkpoint: the base, whose chat template is that of its family.
        adapter: where to start from; None starts from the base.
        records: what to sample answers to.
        val: held-out records, scored after each epoch; may be empty.
        settings: everything else.
        folder: an existing folder.

    Returns:
        The manifest's `result`: the base's weights_sha256, rewards, scores, speed and sizes.

    Raises:
        InputError: a record cannot be used, the adapter does not fit, or TRL refuses an argument.
    """
    facts = (checkpoint.family, checkpoint.spec, checkpoint.tokenizer)
    samples = prepare(tqdm(records, desc="prepare", unit="record", disable=None, delay=2), *facts)
    val_samples = prepare(val[: settings.val_limit], *facts)
    weights = {name: weight for name, weight in settings.rewards.items() if weight}
    longest = max(len(sample.answer_ids) for sample in samples)
    arguments = grpo_arguments(
        settings,
        folder / CHECKPOINTS,
        max_tokens=settings.max_tokens or longest * 3 // 2,
        weights=list(weights.values()),
        validate=bool(val),
    )
    model = _policy(checkpoint, adapter, settings)
    collate = Collator.of(checkpoint, PixelInputs(checkpoint.spec, settings.cache_mb << 20))
    prompts = SamplePrompts(checkpoint, samples, collate)
    data = prompts.dataset([record.prompt(checkpoint.family) for record in records])
    progress = Progress(settings.batch_size)
    callbacks: list[Any] = [LogSchedule(), progress]
    if arguments.process_index == 0:
        board: Any = TensorBoardCallback
        callbacks.append(board(SummaryWriter(str(folder / "logs"))))
    with library_warnings_off():
        trainer = GroundingGrpo(
            scorer=GroundingScorer(checkpoint, val_samples, collate, settings.batch_size * settings.generations),
            records=records,
            model=model,
            reward_funcs=[_reward(name, records, samples, checkpoint) for name in weights],
            args=arguments,
            train_dataset=data,
            eval_dataset=data if val else None,  # asked for, never looked at
            processing_class=prompts,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        resume = last_checkpoint(folder / CHECKPOINTS)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_adapter(trainer, folder)
    return {
        "family": checkpoint.family.name,
        "base_weights_sha256": weights_sha256(checkpoint.folder),
        "records": len(records),
        "steps": trainer.state.global_step,
        "resumed_from_step": progress.first_step,
        **_figures(trainer.state.log_history, list(weights)),
        "samples_per_second": round(progress.samples_per_second, 2),
        "parallel": parallel(trainer),
        "precision": str(dtype_of(settings.precision)).removeprefix("torch."),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _policy(checkpoint: HubCheckpoint, adapter: Adapter | None, settings: GrpoSettings) -> Any:
    """Return the model with an adapter that is to be trained."""
    torch.manual_seed(settings.seed)
    model = checkpoint.load_model(dtype_of(settings.precision))
    # TRL stops answers at the ends that the model names, which checkpoints give incompletely, and takes what its own
    # settings leave open from the model: a penalty would make answers that the policy does not give.
    forget_sampling(model, stop=stop_ids(checkpoint.tokenizer, checkpoint.family))
    with library_warnings_off():
        if adapter is not None:
            config = copy.copy(adapter.config)
            config.inference_mode = False
            policy = get_peft_model(model, config)
            adapter.load_into(policy)
            return policy
        lora = settings.lora
        names = resolve_targets(model, checkpoint.modules, lora.targets, vision=lora.vision)
        return get_peft_model(model, lora_config(model, names, lora))


def _reward(name: str, records: Sequence[Record], samples: Sequence[Sample], checkpoint: HubCheckpoint) -> Any:
    """Return a reward as TRL calls it; its logs know it by `name`."""

    def reward(completion_ids: list[list[int]], image: list[int], **_: Any) -> list[float | None]:
        texts = [answer_text(ids, checkpoint) for ids in completion_ids]
        return [
            REWARDS[name](text, records[number], samples[number].geometry, checkpoint.family)
            for text, number in zip(texts, image, strict=True)
        ]

    reward.__name__ = name
    return reward


def _figures(history: Sequence[Mapping[str, float]], rewards: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each reward over the first and the last tenth of the steps, and each validation."""
    steps = [entry for entry in history if "reward" in entry]
    tenth = max(1, len(steps) // 10)
    found: dict[str, Any] = {}
    for name in rewards:
        key = f"rewards/{name}/mean"
        values = [entry[key] for entry in steps if entry.get(key) is not None]
        first, last = values[:tenth], values[-tenth:]
        found[name] = {"first": sum(first) / len(first), "last": sum(last) / len(last)} if values else None
    validations = [
        {"epoch": entry["epoch"], **{name: entry[f"eval_{name}"] for name in SCORES if f"eval_{name}" in entry}}
        for entry in history
        if any(f"eval_{name}" in entry for name in SCORES)
    ]
    return {"rewards": found, "validation": validations}
