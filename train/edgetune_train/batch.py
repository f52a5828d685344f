"""From samples to the tensors that a model takes: for training with labels, for generation without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgetune_runtime.conversation import Sample, token_id
from edgetune_train.checkpoint import Checkpoint
from edgetune_train.vision import ImageInputs

IGNORE = -100  # the label that torch's cross entropy leaves out of the loss


@dataclass(frozen=True)
class Collator:
    """Puts samples into one batch.

    Attributes:
        image_id: id of the image placeholder token.
        pad_id: id to pad with.
        images: what gives the model its images.
    """

    image_id: int
    pad_id: int
    images: ImageInputs

    @classmethod
    def of(cls, base: Checkpoint, images: ImageInputs) -> Collator:
        """Return the collator of a checkpoint.

        Raises:
            InputError: its tokenizer lacks a token of its family.
        """
        chat, special = base.family.chat, base.family.special_tokens
        return cls(token_id(base.tokenizer, chat.image_token), token_id(base.tokenizer, special["pad"]), images)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a training batch: B sequences padded on the right to length L.

        The answers sit at the end of the sequences, so logits are asked for only from one position before the first
        answer token on: the same loss without a vocabulary-sized row for every image token. `labels` covers those
        last K = `logits_to_keep` positions: the token itself where it belongs to an answer or ends it, -100
        elsewhere; the model shifts them by one.

        Returns:
            input_ids, attention_mask, mm_token_type_ids (1 on image tokens): int64 [B, L]; labels: int64 [B, K];
            logits_to_keep: K; and what `images` gives.
        """
        prompts = [sample.prompt_ids for sample in samples]
        rows = [sample.prompt_ids + sample.answer_ids for sample in samples]
        length = max(map(len, rows))
        keep = length - min(map(len, prompts)) + 1
        labels = [[IGNORE] * len(prompt) + row[len(prompt) :] for prompt, row in zip(prompts, rows, strict=True)]
        return {
            **self._inputs(samples, [row + [self.pad_id] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
            "labels": torch.tensor([row + [IGNORE] * (length - len(row)) for row in labels])[:, -keep:],
            "logits_to_keep": keep,
        }

    def prompts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a batch to generate from: prompts padded on the left, since rows grow at their right end.

        Returns:
            input_ids, attention_mask, mm_token_type_ids: int64 [B, L]; and what `images` gives.
        """
        rows = [sample.prompt_ids for sample in samples]
        length = max(map(len, rows))
        return {
            **self._inputs(samples, [[self.pad_id] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        }

    def _inputs(self, samples: Sequence[Sample], rows: list[list[int]]) -> dict[str, Any]:
        input_ids = torch.tensor(rows)
        return {
            "input_ids": input_ids,
            "mm_token_type_ids": (input_ids == self.image_id).long(),
            **self.images([sample.record.image for sample in samples]),
        }
