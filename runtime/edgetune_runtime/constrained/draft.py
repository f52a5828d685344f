"""What an answer is expected to be, so that a model reads it at once instead of writing it token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetune_runtime.constrained.walk import Rules, Walk


class Draft:
    """An expected answer, in which the real one looks up its own place.

    Where the two part, the draft is of use again as soon as the real answer is at a place that it has as well: after a
    number that moved, or a name that is another one.

    Args:
        rules: of the picture.
        tokens: of the answer; from the first that the grammar does not have on they are left out.
        numbers: whether its numbers are expected too, and not only its words.
    """

    def __init__(self, rules: Rules, tokens: Sequence[int] = (), *, numbers: bool = False) -> None:
        largest = rules.automaton.largest
        anywhere = rules.bounds._replace(low=(0, 0), high=(largest, largest))  # a place is looked up by its words
        walk = Walk(replace(rules, bounds=anywhere))
        self._steps: list[tuple[tuple[int, str], int | None]] = []
        for token in tokens:
            if walk.ended or not walk.legal(token):
                break
            known = numbers or walk.place.number is None
            self._steps.append(((walk.state, walk.said), token if known else None))
            walk = walk.after(token)

    def propose(self, walk: Walk, start: int, *, numbers: bool = True) -> tuple[int | None, int]:
        """The token that is expected at a place, or None, and how much of the draft it ends.

        Args:
            walk: the place.
            start: how much of the draft was used already; what is before it is not looked at again.
            numbers: whether its numbers are still believed.
        """
        if walk.place.number is not None and not numbers:
            return None, start
        here = (walk.state, walk.said)
        for number in range(start, len(self._steps)):
            place, token = self._steps[number]
            if place == here:
                return (token, number + 1) if token is not None and walk.legal(token) else (None, start)
        return None, start
