"""Where an answer stands in its grammar: what may follow, and which of it the model finds most likely."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from edgetune_runtime.backends import Float, Int
from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.codec.geometry import Geometry, to_model
from edgetune_runtime.codec.grammar import label_pattern
from edgetune_runtime.constrained.automaton import END, Automaton, State

LONGEST_LABEL = 48
"""Tokens after which a name that the model makes up is ended: one that has not ended by then never does."""

_NUMBER = re.compile(r"[0-9.]+")


class Bounds(NamedTuple):
    """The numbers that a box of a picture may have, in steps of the last decimal: from and to on both axes."""

    low: tuple[int, int]
    high: tuple[int, int]
    decimals: int

    @classmethod
    def of(cls, geometry: Geometry, box_format: BoxFormat) -> Bounds:
        """Return the bounds of a picture: what rounds to a place inside it."""
        x1, y1, x2, y2 = to_model([[0, 0, geometry.width, geometry.height]], geometry, box_format)[0]
        step = 10**box_format.decimals
        low = tuple(int(np.ceil(edge * step - 0.5)) for edge in (x1, y1))
        high = tuple(int(np.floor(edge * step + 0.5)) for edge in (x2, y2))
        return cls((max(low[0], 0), max(low[1], 0)), (high[0], high[1]), box_format.decimals)


@dataclass(frozen=True)
class Rules:
    """What answers about one picture are held to.

    Attributes:
        automaton: the grammar.
        bounds: of the picture's numbers.
        pattern: of the beginnings of names.
        piece: the text of a token in the middle of a text.
        control: tokens that are no text.
    """

    automaton: Automaton
    bounds: Bounds
    pattern: re.Pattern[str]
    piece: Callable[[int], str]
    control: frozenset[int]

    @classmethod
    def of(
        cls,
        automaton: Automaton,
        geometry: Geometry,
        box_format: BoxFormat,
        piece: Callable[[int], str],
        control: frozenset[int],
    ) -> Rules | None:
        """Return the rules of a picture; None for one whose numbers the grammar cannot write."""
        bounds = Bounds.of(geometry, box_format)
        if max(bounds.high) > automaton.largest:
            return None
        return cls(automaton, bounds, label_pattern(box_format.style), piece, control)


@dataclass(frozen=True)
class Walk:
    """A place in an answer; walks are values, so that one can look ahead.

    Attributes:
        rules: what the answer is held to.
        state: of the automaton.
        said: what stands of the number or the name that the place is in.
        label_tokens: of the name so far.
        corner: the box's first two numbers, in steps of the last decimal.
    """

    rules: Rules
    state: int = 0
    said: str = ""
    label_tokens: int = 0
    corner: tuple[int, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the answer is over."""
        return self.state == END

    @property
    def place(self) -> State:
        """The automaton's state."""
        return self.rules.automaton.states[self.state]

    @property
    def forced(self) -> int | None:
        """The only legal token, None where there is a choice."""
        place = self.place
        if place.forced is not None or place.label:
            return place.forced
        if place.number is None:
            return None
        return next(iter(self._legal_digits)) if len(self._legal_digits) == 1 else None

    def legal(self, token: int) -> bool:
        """Whether a token may follow."""
        place = self.place
        if place.label:
            return self._in_label(token) or self._leaving(token) is not None
        return token in (place.next if place.number is None else self._legal_digits)

    def after(self, token: int) -> Walk:
        """The place behind a legal token."""
        place = self.place
        leaving = self._leaving(token) if place.label else place.next[token]
        if leaving is None:
            return replace(self, said=self.said + self.rules.piece(token), label_tokens=self.label_tokens + 1)
        following = leaving
        number = None if following == END else self.rules.automaton.states[following].number
        corner = self.corner
        if place.number is not None and number != place.number and place.number < 2 and self._joined(token):
            corner = (*corner[: place.number], self._steps(self._joined(token)))
        if number is None:
            return Walk(self.rules, following, corner=corner)
        text = self.rules.piece(token)
        digits = re.search(r"[0-9.]*\Z", text)
        assert digits is not None
        said = self._joined(token) if number == place.number else digits[0]
        return Walk(self.rules, following, said, corner=corner)

    def choose(self, logits: Float, tokens: Int | None = None) -> tuple[int, float]:
        """The most likely legal token, and its probability (0-1).

        In a name it is that among all tokens. Elsewhere it is that among the legal ones, which is never less: what the
        model would have given to others is shared out.

        Args:
            logits: float32 [V], or [N] of the automaton's `tokens`.
            tokens: these tokens, int64 [N]; None where logits are of all tokens.
        """
        place = self.place
        if place.label:
            assert tokens is None
            return self._choose_in_label(logits)
        allowed = list(place.next if place.number is None else self._legal_digits)
        rows = np.array(allowed) if tokens is None else np.searchsorted(tokens, allowed)
        values = logits[rows].astype(np.float64)
        best = int(values.argmax())
        return allowed[best], float(1 / np.exp(values - values[best]).sum())

    def _choose_in_label(self, logits: Float) -> tuple[int, float]:
        token = int(logits.argmax())
        if self.label_tokens >= LONGEST_LABEL and self._label_may_end():
            token = max(self.place.next, key=logits.__getitem__)
        elif not self.legal(token):
            token = next(each for each in np.argsort(-logits, kind="stable").tolist() if self.legal(each))
        top = logits.max()
        total = np.exp(logits - top).sum(dtype=np.float64)
        return token, float(np.exp(np.float64(logits[token] - top)) / total)

    def _in_label(self, token: int) -> bool:
        """Whether a token goes on with the name."""
        if token in self.rules.control or (token in self.place.next and self._label_may_end()):
            return False
        text = self.said + self.rules.piece(token)
        return self.rules.pattern.fullmatch(text) is not None

    def _label_may_end(self, rest: str = "") -> bool:
        """Whether the name is whole after a rest: not in the middle of an escape."""
        return self.rules.pattern.fullmatch(self.said + rest + "x") is not None

    def _leaving(self, token: int) -> int | None:
        """The state that a token leads to which ends the name, also one that holds the name's last letters."""
        ends = self.place.next
        if token in ends:
            return ends[token] if self._label_may_end() else None
        if token in self.rules.control:
            return None
        text = self.rules.piece(token)
        for end, following in ends.items():
            closing = self.rules.piece(end)
            if closing and text.endswith(closing) and self._label_may_end(text.removesuffix(closing)):
                return following
        return None

    @cached_property
    def _legal_digits(self) -> dict[int, None]:
        """The tokens that lead to a number within its bounds, in the order of the automaton."""
        place = self.place
        assert place.number is not None
        axis = place.number % 2
        low, high = self.rules.bounds.low[axis], self.rules.bounds.high[axis]
        if place.number < 2:
            high -= 1
        elif len(self.corner) > axis:
            low = max(low, self.corner[axis] + 1)
        return {token: None for token in place.next if self._reaches(place, token, self.said, low, high)}

    def _reaches(self, place: State, token: int, said: str, low: int, high: int) -> bool:
        """Whether a number within bounds can be written by going on with this token."""
        following = place.next[token]
        told = said + _leading(self.rules.piece(token))
        state = None if following == END else self.rules.automaton.states[following]
        if state is None or state.number != place.number:
            return not told or low <= self._steps(told) <= high  # without a digit it is no number that ends here
        if not self._within(told, low, high):
            return False
        return any(self._reaches(state, further, told, low, high) for further in state.next)

    def _within(self, told: str, low: int, high: int) -> bool:
        """Whether numbers that begin with these digits can be within bounds, as far as digits alone tell."""
        decimals = self.rules.bounds.decimals
        whole, point, rest = told.partition(".")
        if decimals:
            left = decimals - len(rest)
            first = int((whole + rest) or 0) * 10**left
            return bool(told == "" or (first <= high and first + 10**left - 1 >= low)) if point else True
        if not told or told == "0":
            return True
        first, size = int(told), 1
        while first <= high:
            if first + size - 1 >= low:
                return True
            first, size = first * 10, size * 10
        return False

    def _joined(self, token: int) -> str:
        return self.said + _leading(self.rules.piece(token))

    def _steps(self, told: str) -> int:
        """A written number in steps of the last decimal."""
        return round(float(told) * float(10**self.rules.bounds.decimals))


def _leading(text: str) -> str:
    """The digits that a token's text begins with."""
    found = _NUMBER.match(text)
    return found[0] if found else ""
