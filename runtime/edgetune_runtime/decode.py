"""The greedy decode loop: from a prompt and image features to tokens, on any backend."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgetune_runtime.backends import Backend, Float, GreedyBackend, ImageFeatures, Int
from edgetune_runtime.errors import InputError

SPARE = 64
"""Tokens that a sequence has room for besides its own, so that a longer phrase about the same picture fits as well."""
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

    @property
    def shared(self) -> int:
        """How many tokens other prompts about the same pictures begin with: up to the last picture's end, or 0."""
        places = np.flatnonzero(self.token_ids == self.image_token)
        return 0 if self.image is None or not len(places) else int(places[-1]) + 1


def prefill(backend: Backend, prompt: Prompt, *, room: int, known: int = 0) -> Float:
    """Read the prompt, leaving room for more tokens; return the logits float32 [V] of the first new token.

    The prompt is read in two parts, up to the end of its pictures and from there, whether or not the first of them is
    known: an answer is the same to the last bit, whatever was asked before.

    Args:
        backend: that reads.
        prompt: what is read.
        room: for that many tokens of the answer.
        known: tokens that the backend's sequence has of this prompt already: none, or those up to the pictures' end.
    """
    begin(backend, prompt, room=room, known=known)
    return backend.forward(backend.embed(prompt.token_ids[prompt.shared :]), prompt.positions[:, prompt.shared :])


def begin(backend: Backend, prompt: Prompt, *, room: int, known: int = 0) -> None:
    """Read the first part of the prompt, up to its pictures' end. Takes what `prefill` does."""
    if known == 0:
        backend.reserve(len(prompt.token_ids) + room)
        if prompt.shared:
            assert prompt.image is not None
            part = slice(prompt.shared)
            backend.read_pictures(prompt.token_ids[part], prompt.positions[:, part], prompt.image_token, prompt.image)
            backend.keep()


def step(backend: Backend, token: int, position: int) -> Float:
    """Append one token of text at a position and return the logits float32 [V] of the next."""
    return backend.forward(backend.embed(np.array([token], np.int64)), np.full((3, 1), position, np.int64))


class Step(NamedTuple):
    """A generated token.

    Attributes:
        token: its id.
        probability: what it was chosen with (0-1); None where the engine keeps its logits.
        passes: how often the decoder had been run for the answer until it was known, the rest of the prompt behind the
            picture included.
    """

    token: int
    probability: float | None
    passes: int


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
    known: int = 0,
) -> Iterator[Step]:
    """Generate as `greedy` does, each token with its probability unless that is not wanted; `known` as of `prefill`."""
    size = len(prompt.token_ids)
    check_room(size, max_new_tokens, max_length)
    logits = prefill(backend, prompt, room=min(max_new_tokens + SPARE, max_length - size), known=known)
    if isinstance(backend, GreedyBackend):
        tokens = _chunks(backend, int(logits.argmax()), prompt.next_position, max_new_tokens, stop)
        yield from (Step(token, None, number) for number, token in enumerate(tokens, 1))
        return
    for count in range(max_new_tokens):
        token = int(logits.argmax())
        yield Step(token, _probability(logits, token) if probabilities else None, count + 1)
        if token in stop:
            return
        if count + 1 < max_new_tokens:
            logits = step(backend, token, prompt.next_position + count)


def check_room(size: int, max_new_tokens: Any, max_length: int) -> None:
    """Refuse a prompt of `size` tokens whose answer does not fit behind it.

    Raises:
        InputError: the prompt and `max_new_tokens` together exceed `max_length`, or the latter is no number of tokens.
    """
    check_count(max_new_tokens)
    if size + max_new_tokens > max_length:
        raise InputError(
            f"the prompt takes {size} tokens and the answer up to {max_new_tokens}: over the bundle's {max_length}",
            hint="use a smaller image, a shorter text or fewer new tokens, or export with a larger --max-length",
        )


def check_count(max_new_tokens: Any) -> None:
    """Refuse a number of tokens that is none.

    Raises:
        InputError: it is no whole number of at least 1.
    """
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
