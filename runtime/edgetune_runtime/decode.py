"""The greedy decode loop: from a prompt and image features to tokens, on any backend."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgetune_runtime.backends import Backend, Float, GreedyBackend, ImageFeatures, Int
from edgetune_runtime.errors import InputError

_CHUNK = 16
"""Tokens that an engine with a greedy loop of its own finds at a time."""


@dataclass(frozen=True)
class Prompt:
    """Everything the decoder reads before it writes.

    Attributes:
        token_ids: int64 [S]; image places hold `image_token`.
        positions: int64 [3, S].
        next_position: of the first generated token, on all three axes.
        image_token: id of the placeholder token.
        image: features of the images, in the order of their places, or None without images.
    """

    token_ids: Int
    positions: Int
    next_position: int
    image_token: int
    image: ImageFeatures | None


def prefill(backend: Backend, prompt: Prompt, *, room: int) -> Float:
    """Read the prompt, leaving room for more tokens; return the logits float32 [V] of the first new token."""
    backend.reserve(len(prompt.token_ids) + room)
    embeddings = backend.embed(prompt.token_ids)
    if prompt.image is None:
        return backend.forward(embeddings, prompt.positions)
    places = prompt.token_ids == prompt.image_token
    embeddings[places] = prompt.image.embeddings
    deepstack = []
    for features in prompt.image.deepstack:
        dense = np.zeros_like(embeddings)
        dense[places] = features
        deepstack.append(dense)
    return backend.forward(embeddings, prompt.positions, deepstack)


def step(backend: Backend, token: int, position: int) -> Float:
    """Append one token of text at a position and return the logits float32 [V] of the next."""
    return backend.forward(backend.embed(np.array([token], np.int64)), np.full((3, 1), position, np.int64))


class Step(NamedTuple):
    """A generated token and the probability (0-1) it was chosen with; None where the engine keeps its logits."""

    token: int
    probability: float | None


def greedy(
    backend: Backend, prompt: Prompt, *, stop: Collection[int], max_new_tokens: int, max_length: int
) -> Iterator[int]:
    """Generate the most likely token again and again, up to and including a stop token.

    Raises:
        InputError: the prompt and `max_new_tokens` together exceed `max_length`.
    """
    steps = greedy_steps(
        backend, prompt, stop=stop, max_new_tokens=max_new_tokens, max_length=max_length, probabilities=False
    )
    return (found.token for found in steps)


def greedy_steps(
    backend: Backend,
    prompt: Prompt,
    *,
    stop: Collection[int],
    max_new_tokens: int,
    max_length: int,
    probabilities: bool = True,
) -> Iterator[Step]:
    """Generate as `greedy` does, each token with its probability unless that is not wanted."""
    size = len(prompt.token_ids)
    _check_count(max_new_tokens)
    if size + max_new_tokens > max_length:
        raise InputError(
            f"the prompt takes {size} tokens and the answer up to {max_new_tokens}: over the bundle's {max_length}",
            hint="use a smaller image, a shorter text or fewer new tokens, or export with a larger --max-length",
        )
    logits = prefill(backend, prompt, room=max_new_tokens)
    if isinstance(backend, GreedyBackend):
        tokens = _chunks(backend, int(logits.argmax()), prompt.next_position, max_new_tokens, stop)
        yield from (Step(token, None) for token in tokens)
        return
    for count in range(max_new_tokens):
        token = int(logits.argmax())
        yield Step(token, _probability(logits, token) if probabilities else None)
        if token in stop:
            return
        if count + 1 < max_new_tokens:
            logits = step(backend, token, prompt.next_position + count)


def _check_count(max_new_tokens: Any) -> None:
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be a whole number of at least 1, not {max_new_tokens!r}")


def _probability(logits: Float, token: int) -> float:
    """Softmax of logits float32 [V] at the largest of them."""
    return float(1 / np.exp(logits - logits[token]).sum(dtype=np.float64))


def _chunks(backend: GreedyBackend, token: int, position: int, count: int, stop: Collection[int]) -> Iterator[int]:
    """The first token, and those that the engine finds itself, a few at a time so that a reader sees them come."""
    yield token
    given = 1
    while given < count and token not in stop:
        found = backend.greedy(token, position + given - 1, count=min(_CHUNK, count - given), stop=stop)
        yield from found
        given, token = given + len(found), found[-1]
