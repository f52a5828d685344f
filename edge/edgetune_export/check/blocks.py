"""Hidden states after each block of the decoder: the written graph's beside the reference's, and where they part.

A few tokens of each case are watched, so that memory does not grow with prompts and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune_runtime.backends import Float, Int
from edgetune_runtime.errors import ParityError

WATCHED = 4
"""How many tokens of a prompt and how many of an answer are watched. The states of a case are at most
2 · 4 · blocks · hidden size · 4 bytes: 5 MB for 36 blocks of 4,096."""

MAX_ERROR, MAX_HALF_ERROR = 1e-4, 5e-2
"""Largest relative error of a token's state after a block, in float32 and in float16. Sound graphs of 3 to
36 blocks were seen to be within 3.2e-6 and 5.5e-3."""


@dataclass(frozen=True)
class BlockErrors:
    """How far states after each block are from the reference's.

    Attributes:
        tokens: watched, of all cases.
        relative_errors: for each block the largest |ours - theirs| / |theirs| of a token (Euclidean norms).
    """

    tokens: int
    relative_errors: tuple[float, ...]

    def require(self, *, half: bool) -> None:
        """Raise `ParityError` where states leave their bound, naming the first block after which they do."""
        allowed, count = MAX_HALF_ERROR if half else MAX_ERROR, len(self.relative_errors)
        for number, error in enumerate(self.relative_errors):
            where = f"block {number + 1} of {count} (layers.{number}) of the written decoder"
            if not np.isfinite(error):
                fix = "float16 overflows on this model: choose another precision" if half else None
                raise ParityError(f"{where} computes NaN or infinity", hint=fix)
            if error > allowed:
                raise ParityError(
                    f"{where} differs from transformers: relative error {error:.2e}, at most {allowed:.0e} allowed"
                )

    def to_dict(self) -> dict[str, Any]:
        """What a manifest tells: the largest error, and after which block (counted from 1) it is."""
        worst = int(np.argmax(self.relative_errors))
        return {
            "tokens": self.tokens,
            "count": len(self.relative_errors),
            "max_relative_error": self.relative_errors[worst],
            "block": worst + 1,
        }


def watched(prompt: int, answer: int) -> Int:
    """Places of the watched tokens of a prompt and of the answer that follows, both evenly, from first to last."""
    places = [np.linspace(0, count - 1, min(WATCHED, count)).astype(np.int64) for count in (prompt, answer)]
    return np.concatenate([places[0], prompt + places[1]])


def compare(ours: Sequence[Float], theirs: Sequence[Float]) -> BlockErrors:
    """Compare states [blocks, tokens, H] of each case with the reference's."""
    errors = [_errors(*pair) for pair in zip(ours, theirs, strict=True)]
    return BlockErrors(sum(states.shape[1] for states in theirs), tuple(np.max(errors, axis=0).tolist()))


def _errors(ours: Float, theirs: Float) -> Float:
    """The largest relative error after each block, [blocks]; NaN where a state has one."""
    apart = np.linalg.norm(ours - theirs, axis=-1) / np.maximum(np.linalg.norm(theirs, axis=-1), 1e-30)
    largest: Float = apart.max(axis=-1)
    return largest
