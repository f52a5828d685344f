"""How sure a model is of each box: the probabilities that it gave to the tokens of the box's coordinates."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

_NUMBER = r"-?\d+(?:\.\d+)?"
_BETWEEN = r"[\s,()\[\]]+"
# Four numbers with nothing but brackets, commas and space between them: a box in every style.
_BOX = re.compile(_BETWEEN.join([f"({_NUMBER})"] * 4))


class TokenProbability(NamedTuple):
    """A generated token: where its text ends in the answer (in characters), and the probability it was chosen with."""

    end: int
    probability: float


def token_probabilities(
    ids: Sequence[int], probabilities: Sequence[float], decode: Callable[[list[int]], str]
) -> list[TokenProbability]:
    """Return where each token of an answer ends in its text, with the token's probability.

    Args:
        ids: the generated tokens [N].
        probabilities: what each was chosen with [N], in 0-1.
        decode: turns tokens into the answer's text.
    """
    ends = (len(decode(list(ids[: place + 1]))) for place in range(len(ids)))
    return [TokenProbability(end, float(value)) for end, value in zip(ends, probabilities, strict=True)]


class BoxScores:
    """The scores of an answer's boxes, asked for in the order of the text.

    A score (0-1) is the geometric mean of the probabilities of the tokens that hold digits of the box's four numbers:
    more digits do not lower it. Without `tokens` there are no scores.
    """

    def __init__(self, text: str, tokens: Sequence[TokenProbability]) -> None:
        self._text = text
        self._tokens = tokens
        self._boxes = _BOX.finditer(text) if tokens else iter(())

    def next(self, numbers: Sequence[float]) -> float | None:
        """Return the score of the next box with these numbers as written, or None where there is none."""
        for box in self._boxes:
            if [float(number) for number in box.groups()] == list(numbers):
                return self._score(box.start(), box.end())
        return None

    def _score(self, start: int, end: int) -> float | None:
        logs, begin = [], 0
        for token in self._tokens:
            part = self._text[max(begin, start) : min(token.end, end)]
            begin = token.end
            if any(letter.isdigit() for letter in part):
                logs.append(math.log(max(token.probability, 1e-30)))
        return math.exp(sum(logs) / len(logs)) if logs else None
