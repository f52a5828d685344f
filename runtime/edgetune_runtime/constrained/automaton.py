"""The grammar of a model's answers over token ids, as a bundle carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError

END = -1
"""The state behind the token that ends an answer."""

SLOTS = 4
"""Numbers of a box."""


@dataclass(frozen=True)
class State:
    """A place in an answer.

    Attributes:
        next: the state that each legal token leads to.
        number: which of a box's four numbers the place is in: before its first digit, or behind some; None elsewhere.
        label: whether a name stands here, in which tokens of text are legal beside those of `next`, which end it.
    """

    next: Mapping[int, int]
    number: int | None = None
    label: bool = False

    @property
    def forced(self) -> int | None:
        """The only token that is legal here, or None where there is a choice."""
        return next(iter(self.next)) if len(self.next) == 1 and not self.label else None


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over token ids.

    It is made at export from answers that the checkpoint's own tokenizer has tokenized, so that what it forces is what
    the model writes, also where a tokenizer joins digits or punctuation.

    Examples:
        >>> from edgetune_runtime.constrained.automaton import END, Automaton, State
        >>> automaton = Automaton((State({7: 1, 8: END}), State({5: 1, 6: END}, number=0)), largest=9)
        >>> automaton.tokens.tolist(), Automaton.from_dict(automaton.to_dict(), 10) == automaton
        ([5, 6, 7, 8], True)

    Attributes:
        states: an answer begins in the first.
        largest: the largest number that it can write, in steps of the last decimal; answers about pictures that need
            larger ones are not held to it.
    """

    states: tuple[State, ...]
    largest: int

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """The tokens of all transitions in ascending order, int64 [N]: the rows of a head that reads no others."""
        return np.array(sorted({token for state in self.states for token in state.next}), np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; a state is [[token, next state], ...] in the order of the tokens."""
        numbers: dict[str, int] = {str(i): each.number for i, each in enumerate(self.states) if each.number is not None}
        return {
            "states": [[list(step) for step in sorted(state.next.items())] for state in self.states],
            "numbers": numbers,
            "labels": [i for i, state in enumerate(self.states) if state.label],
            "largest": self.largest,
        }

    @classmethod
    def from_dict(cls, values: Any, vocabulary: int) -> Automaton:
        """Return what `to_dict` wrote down.

        Args:
            values: as JSON gives them.
            vocabulary: how many tokens there are.

        Raises:
            InputError: it is no automaton over these tokens whose every state can be left.
        """
        try:
            steps, numbers, labels = values["states"], values["numbers"], frozenset(values["labels"])
            states = tuple(
                State(_transitions(each, len(steps), vocabulary), numbers.get(str(i)), i in labels)
                for i, each in enumerate(steps)
            )
            largest = values["largest"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"is no automaton over tokens: {type(error).__name__}: {error}") from error
        slots = {state.number for state in states} - {None}
        if not states or not slots <= set(range(SLOTS)) or type(largest) is not int or largest < 1:
            raise InputError(f"has {len(states)} states, numbers {sorted(map(str, slots))}, the largest {largest!r}")
        return cls(states, largest)


def _transitions(steps: Sequence[Sequence[int]], states: int, vocabulary: int) -> dict[int, int]:
    """Read the transitions of a state; raises `ValueError`."""
    found = dict((token, following) for token, following in steps)  # noqa: C402 - raises where a pair is none
    if not found or len(found) != len(steps):
        raise ValueError("a state without a way out, or with two for one token")
    for token, following in found.items():
        if type(token) is not int or type(following) is not int:
            raise ValueError(f"{token!r}: {following!r} is no transition")
        if not (0 <= token < vocabulary and END <= following < states):
            raise ValueError(f"token {token} leads to state {following}, of {vocabulary} tokens and {states} states")
    return found
