"""What a training step minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.nn import functional

from edgetune_train.batch import IGNORE


class Objective(Protocol):
    """A loss over batches. One with a method `figures() -> dict[str, float]` has them logged beside the loss."""

    def __call__(self, logits: torch.Tensor, batch: Mapping[str, Any], tokens: torch.Tensor | int, /) -> torch.Tensor:
        """Return a batch's share of the loss, a scalar.

        Args:
            logits: [B, K, V].
            batch: see `Collator`; its labels [B, K] belong to the logits one by one.
            tokens: learned tokens in the whole optimizer step.
        """
        ...


def answer_loss(logits: torch.Tensor, batch: Mapping[str, Any], tokens: torch.Tensor | int) -> torch.Tensor:
    """Return the cross entropy summed over the batch's learned tokens, divided by `tokens`.

    However the samples of an optimizer step are divided into batches, packed or padded, the batches' losses add up to
    the mean over all learned tokens of the step.
    """
    total = functional.cross_entropy(
        logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / tokens
