"""How sure a model is of each box: the probabilities that it gave to the tokens of the box's coordinates."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgetune_runtime.text_stream import TextStream


class TokenProbability(NamedTuple):
    """A generated token: where its text ends in the answer (in characters), and the probability it was chosen with."""

    end: int
    probability: float


def token_probabilities(
    ids: Sequence[int], probabilities: Sequence[float], decode: Callable[[list[int]], str], prefix: str = ""
) -> list[TokenProbability]:
    """Return where each token of an answer ends in its text, with the token's probability.

    Args:
        ids: the generated tokens [N].
        probabilities: what each was chosen with [N], in 0-1.
        decode: turns tokens into text.
        prefix: see `TextStream`.
    """
    stream, found = TextStream(decode, prefix), []
    for token, probability in zip(ids, probabilities, strict=True):
        stream.push(token)
        found.append(TokenProbability(stream.length, float(probability)))
    return found


def joint_probability(tokens: Sequence[TokenProbability]) -> float | None:
    """Return the probability (0-1) of a whole answer, the product over its tokens; None where these are not known."""
    return math.prod(token.probability for token in tokens) if tokens else None


class BoxScores:
    """The scores of an answer's boxes.

    A score (0-1) is the geometric mean of the probabilities of the tokens that hold digits of the box's four numbers:
    more digits do not lower it.

    Args:
        text: of the answer.
        tokens: all of its tokens, in order; without any there are no scores.
    """

    def __init__(self, text: str, tokens: Sequence[TokenProbability]) -> None:
        self._text = text
        self._ends = list(itertools.accumulate((token.end for token in tokens), max))
        self._logs = [math.log(max(token.probability, 1e-30)) for token in tokens]

    def of(self, spans: Sequence[tuple[int, int]]) -> float | None:
        """Return the score of the box whose numbers stand there (start and end in characters), None where unknown."""
        tokens = {token for start, end in spans for token in self._tokens(start, end)}
        return math.exp(sum(self._logs[token] for token in sorted(tokens)) / len(tokens)) if tokens else None

    def _tokens(self, start: int, end: int) -> list[int]:
        """Return the indices of the tokens with a digit in a part of the text."""
        found = []
        token = bisect.bisect_right(self._ends, start)
        while token < len(self._ends) and (token == 0 or self._ends[token - 1] < end):
            begin = self._ends[token - 1] if token else 0
            if any(letter.isdigit() for letter in self._text[max(begin, start) : min(self._ends[token], end)]):
                found.append(token)
            token += 1
        return found
