"""The grounding score of a model in training: answers generated greedily, boxes compared with the records'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, stop_ids
from edgetune_core.generation import generate_greedily
from edgetune_runtime.bench import metrics
from edgetune_runtime.codec import grounding
from edgetune_runtime.records import Record
from edgetune_train.batch import Collator

SCORES = ("acc50", "miou", "refusal_accuracy")
_SLACK = 16  # tokens that an answer may take beyond the longest target


class GroundingScorer:
    """Scores a model on the grounding samples among some.

    Args:
        base: for its tokenizer and family.
        samples: the validation set.
        collate: makes the batches.
        batch_size: prompts generated together.

    Attributes:
        samples: the grounding samples.
    """

    def __init__(self, base: HubCheckpoint, samples: Sequence[Sample], collate: Collator, batch_size: int) -> None:
        self.samples = [
            sample for sample in samples if isinstance(sample.record, Record) and sample.record.kind == "ground"
        ]
        self._base = base
        self._collate = collate
        self._batch_size = batch_size
        self._limit = max((len(sample.answer_ids) for sample in self.samples), default=0) + _SLACK
        self._stop = stop_ids(base.tokenizer, base.family)

    def __call__(self, model: Any) -> dict[str, float]:
        """Return Acc@0.5, the mean IoU and the refusal accuracy (see `metrics.GroundingScores`), each 0 to 1.

        Those without a record to measure them on are left out.

        Args:
            model: a transformers model, adapter and all, in evaluation mode.
        """
        answers = []
        starts = range(0, len(self.samples), self._batch_size)
        for start in tqdm(starts, desc="validate", unit="batch", leave=False, disable=None, delay=2):
            batch = self.samples[start : start + self._batch_size]
            for sample, text in zip(batch, self.generate(model, batch), strict=True):
                answers.append(grounding.parse(text, sample.geometry, self._base.family.box_format))
        records = [sample.record for sample in self.samples if isinstance(sample.record, Record)]
        scores = metrics.score_grounding(answers, records).to_dict()
        return {name: scores[name] for name in SCORES if scores[name] is not None}

    @torch.no_grad()
    def generate(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        """Return the model's greedy answers, up to the token that ends them.

        Other control tokens stay: some families write their boxes in them.
        """
        inputs = self._collate.prompts(samples)
        prompt_length = inputs["input_ids"].shape[1]
        output = generate_greedily(
            model,
            _to(inputs, model.device),
            stop=self._stop,
            pad=self._collate.pad_id,
            max_new_tokens=self._limit,
        )
        return [answer_text(row, self._base) for row in output.sequences[:, prompt_length:].tolist()]


def answer_text(ids: Sequence[int], base: HubCheckpoint) -> str:
    """Return what a model has answered, from its tokens: up to the one that ends it, as the codec reads it."""
    stop = stop_ids(base.tokenizer, base.family)
    ended = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    text = base.tokenizer.decode(list(ids[:ended]), keep_control=True)
    return text.removeprefix(base.family.chat.before_answer)


def _to(value: Any, device: torch.device) -> Any:
    """Return nested tensors on a device; image features are a model output with lists of tensors."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return type(value)(**{key: _to(item, device) for key, item in value.items()})
    return [_to(item, device) for item in value]
