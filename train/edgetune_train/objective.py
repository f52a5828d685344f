"""What a training step minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from edgetune_train.batch import IGNORE

Objective = Callable[[torch.Tensor, Mapping[str, Any], "torch.Tensor | int"], torch.Tensor]
"""Takes logits [B, K, V], the batch (see `Collator`; its labels [B, K] belong to the logits one by one) and the number
of learned tokens in the whole optimizer step; returns this batch's share of the loss, a scalar."""


def answer_loss(logits: torch.Tensor, batch: Mapping[str, Any], tokens: torch.Tensor | int) -> torch.Tensor:
    """Return the cross entropy summed over the batch's learned tokens, divided by `tokens`.

    However the samples of an optimizer step are divided into batches, packed or padded, the batches' losses add up to
    the mean over all learned tokens of the step.
    """
    total = functional.cross_entropy(
        logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / tokens
