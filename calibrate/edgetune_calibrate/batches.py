"""From samples to what a model's forward takes, and how much each token counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from edgetune_calibrate.settings import ROLES
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, token_id
from edgetune_runtime.images.load import load_image
from edgetune_runtime.threads import usable_cores

THREADS = 8
"""Most pictures that are decoded at a time."""


def batch(sample: Sample, checkpoint: HubCheckpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the whole conversation, prompts and answers, as keyword arguments of the model's forward.

    Args:
        sample: one record or conversation as tokens.
        checkpoint: whose preprocessing and image token count.
        dtype: of the pixel values; models convert them to that of their weights anyway.

    Returns:
        input_ids, attention_mask and, if the model takes them, mm_token_type_ids (1 on image tokens): int64 [1, S];
        and unless it has no picture, the preprocessing's arrays of all its pictures in order.

    Raises:
        ImageError: a picture cannot be read.
    """
    ids = torch.tensor([sample.ids])
    inputs, spec = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, checkpoint.spec
    if spec.typed_tokens:
        inputs["mm_token_type_ids"] = (ids == _image_id(checkpoint)).long()
    if sample.images:
        arrays = spec.join([spec.arrays(load_image(path)) for path in sample.images])
        inputs |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return inputs


def batches(samples: Sequence[Sample], checkpoint: HubCheckpoint, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Yield the `batch` of each sample in order; the pictures of the next few are decoded meanwhile.

    Raises:
        ImageError: a picture cannot be read.
    """
    threads = min(THREADS, usable_cores())
    ready: deque[Future[dict[str, Tensor]]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # Pillow and numpy let go of the interpreter's lock
        for sample in samples:
            ready.append(pool.submit(batch, sample, checkpoint, dtype))
            if len(ready) > threads:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()


def roles(sample: Sample, checkpoint: HubCheckpoint) -> Tensor:
    """Return uint8 [1, S]: for each token its index in `ROLES`; whatever the assistant says is an answer."""
    found = torch.full((1, len(sample.ids)), ROLES.index("prompt"), dtype=torch.uint8)
    found[torch.tensor([sample.ids]) == _image_id(checkpoint)] = ROLES.index("image")
    found[torch.tensor([sample.said])] = ROLES.index("answer")
    return found


def token_weights(all_roles: Sequence[Tensor], shares: Mapping[str, float]) -> list[Tensor]:
    """Return float32 weights of the shape of each roles tensor.

    Args:
        all_roles: of each sample, see `roles`.
        shares: role -> how much all its tokens together count; empty for one weight a token.
    """
    if not shares:
        return [torch.ones(one.shape) for one in all_roles]
    total = torch.zeros(len(ROLES))
    for one in all_roles:
        total += torch.bincount(one.flatten(), minlength=len(ROLES))
    wanted = torch.tensor([shares[role] for role in ROLES])
    # Scaled so that the mean weight is 1: damping and reports keep their size.
    each = wanted / wanted.sum() * total.sum() / total.clamp_min(1)
    return [each[one.long()] for one in all_roles]


def _image_id(checkpoint: HubCheckpoint) -> int:
    return token_id(checkpoint.tokenizer, checkpoint.family.chat.image_token)
