"""One answer while it is written within a grammar: which tokens to read next, and what to make of their logits.

A token that is the only legal one is not asked for. What a draft expects is read ahead and compared with what the model
chooses: the answer is the one that the model gives without a draft, in fewer passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune_runtime.backends import Float, Int
from edgetune_runtime.constrained.draft import Draft
from edgetune_runtime.constrained.walk import Rules, Walk
from edgetune_runtime.decode import Step

MOST = 64
"""Tokens that a pass reads ahead."""

MISSES = 2
"""Numbers that a draft may have wrong before its others are no longer believed: each costs a pass over what follows."""


@dataclass(frozen=True)
class Ahead:
    """A token that is read before the model was asked: at which place, and whether no other one would be legal."""

    token: int
    place: Walk
    forced: bool


@dataclass(frozen=True)
class Pass:
    """What is read in one pass, behind what is written.

    Attributes:
        tokens: that are read ahead.
        rows: numbers of those after which logits are wanted, ascending; -1 is the last token that is written, or that
            of the prompt.
        names: whether logits of the whole vocabulary are wanted, as in names.
    """

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    names: bool


class Writer:
    """Writes one answer.

    Args:
        rules: what the answer is held to.
        draft: what it is expected to be.
        longest: most tokens of it, the one that ends it included.
        speculates: whether expected tokens are read; see `Backend.speculates`.

    Attributes:
        passes: how often the model was asked.
        written: how many tokens the answer has.
        over: whether it is whole.
    """

    def __init__(self, rules: Rules, draft: Draft, longest: int, *, speculates: bool) -> None:
        self._draft, self._longest, self._speculates = draft, longest, speculates
        self._here = self._end = Walk(rules)  # the places behind what is written, and behind what is read ahead
        self._ahead: list[Ahead] = []
        self._asked: list[int] = []
        self._used = self._looked = self._missed = 0
        self.passes = self.written = 0
        self.over = False

    def plan(self) -> Pass | list[Step]:
        """The next pass; or the answer's last tokens, where none of them need be asked for."""
        room = self._longest - self.written
        self._look_ahead(min(room, MOST))
        whole = self._end.ended or len(self._ahead) == room
        self._asked = [number for number, each in enumerate(self._ahead) if not each.forced]
        if whole and not self._asked:
            self.over = True
            self.written += len(self._ahead)
            return [Step(each.token, 1.0, self.passes) for each in self._ahead]
        if not whole:
            self._asked.append(len(self._ahead))
        last = self._asked[-1]  # what comes behind it need not be read
        return Pass(
            tuple(each.token for each in self._ahead[:last]),
            tuple(number - 1 for number in self._asked),
            any(self._place(number).place.label for number in self._asked),
        )

    def take(self, logits: Float, tokens: Int | None) -> list[Step]:
        """Read the logits that the last plan wanted.

        Args:
            logits: float32 [rows, V], or of the grammar's tokens alone.
            tokens: these tokens, None for the whole vocabulary.

        Returns:
            The tokens that are known now; as many of those that were read ahead as are among them belong to the answer.
        """
        steps: list[Step] = []
        used = self._used
        self.passes += 1
        rows = dict(zip(self._asked, logits, strict=True))
        for number in range(self._asked[-1] + 1):
            place = self._place(number)
            expected = self._ahead[number].token if number < len(self._ahead) else None
            if number in rows:
                chosen, probability = place.choose(rows[number], tokens)
            else:
                assert expected is not None
                chosen, probability = expected, 1.0
            steps.append(Step(chosen, probability, self.passes))
            if chosen != expected:
                self._here = place.after(chosen)
                self._missed += expected is not None and place.place.number is not None
                self._used = self._draft.propose(place, used)[1] if expected is not None else self._looked
                break
        else:
            # The last one that was asked for is as expected, and so is all that is forced behind it.
            rest = self._ahead[len(steps) :]
            steps += [Step(each.token, 1.0, self.passes) for each in rest]
            self._here, self._used = self._end, self._looked
        self.written += len(steps)
        self.over = self._here.ended or self.written == self._longest
        return steps

    def _place(self, number: int) -> Walk:
        return self._ahead[number].place if number < len(self._ahead) else self._end

    def _look_ahead(self, most: int) -> None:
        """Go on with tokens that are forced or expected."""
        walk, used = self._here, self._used
        self._ahead = []
        while len(self._ahead) < most and not walk.ended:
            token = forced = walk.forced
            if token is None and self._speculates:
                token, used = self._draft.propose(walk, used, numbers=self._missed < MISSES)
            if token is None:
                break
            self._ahead.append(Ahead(token, walk, forced is not None))
            walk = walk.after(token)
        self._end, self._looked = walk, used
