"""What changes in what is seen: something was found, was lost, or has moved."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.observations import Observation, Seen

KINDS = ("found", "lost", "moved")
"""What there is to be told of."""


@dataclass(frozen=True)
class Event:
    """Something that has changed from one answer to the next.

    Attributes:
        kind: "found", "lost" or "moved".
        phrase: of what.
        observation: the answer that says so.
        box: where it is, or where it was for "lost".
    """

    kind: str
    phrase: str
    observation: Observation
    box: Seen

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON values; its box is in float pixels of the upright picture."""
        frame = self.observation.frame
        told: dict[str, Any] = {"event": self.kind, "phrase": self.phrase, "frame": frame.number, "time": frame.time}
        told["stamp"] = frame.stamp
        if frame.media_time is not None:
            told["media_time"] = round(frame.media_time, 6)
        return told | {"label": self.box.label, "box": list(self.box.box), "score": self.box.score}


class Events:
    """Compares each answer with what was known; boxes that were only tracked change nothing.

    Of several boxes of a phrase, the surest counts.

    Examples:
        >>> from edgetune_runtime.live.events import Events
        >>> Events(["found", "seen"])
        Traceback (most recent call last):
            ...
        edgetune_runtime.errors.InputError: there is no event 'seen'

    Args:
        kinds: of `KINDS`, those that are told.
        moved: how far the middle of a box has to move from where it was told last, as a share of the picture's
            diagonal.
        confirm: how many answers in a row have to say that something is there, or gone.

    Raises:
        InputError: a kind is unknown.
    """

    def __init__(self, kinds: Collection[str] = KINDS, *, moved: float = 0.1, confirm: int = 1) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise InputError(f"there is no event {kind!r}", hint=f"there are {', '.join(KINDS)}")
        self._kinds, self._moved, self._confirm = frozenset(kinds), moved, confirm
        self._there: dict[str, Seen] = {}  # where it was told to be
        self._last: dict[str, Seen] = {}  # where it was seen last
        self._doubts: dict[str, int] = {}  # answers in a row that say otherwise

    def of(self, observation: Observation) -> list[Event]:
        """What an observation changes; an answer that could not be read changes nothing."""
        if not observation.answered:
            return []
        found = []
        for phrase, status in observation.phrases.items():
            boxes = [box for box in observation.boxes if box.phrase == phrase]
            if boxes:
                best = max(boxes, key=lambda box: -1.0 if box.score is None else box.score)
                found += self._seen(phrase, best, observation)
            elif status == "refused":
                found += self._missed(phrase, observation)
        return [event for event in found if event.kind in self._kinds]

    def _seen(self, phrase: str, box: Seen, observation: Observation) -> list[Event]:
        self._last[phrase] = box
        if phrase not in self._there:
            if not self._sure(phrase):
                return []
            self._there[phrase] = box
            return [Event("found", phrase, observation, box)]
        self._doubts[phrase] = 0
        if _distance(self._there[phrase], box) < self._moved * _diagonal(observation):
            return []
        self._there[phrase] = box
        return [Event("moved", phrase, observation, box)]

    def _missed(self, phrase: str, observation: Observation) -> list[Event]:
        if phrase not in self._there:
            self._doubts[phrase] = 0
            return []
        if not self._sure(phrase):
            return []
        del self._there[phrase]
        return [Event("lost", phrase, observation, self._last[phrase])]

    def _sure(self, phrase: str) -> bool:
        """Whether enough answers in a row have said so."""
        self._doubts[phrase] = self._doubts.get(phrase, 0) + 1
        if self._doubts[phrase] < self._confirm:
            return False
        self._doubts[phrase] = 0
        return True


def _middle(box: Seen) -> tuple[float, float]:
    x1, y1, x2, y2 = box.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def _distance(one: Seen, other: Seen) -> float:
    (x1, y1), (x2, y2) = _middle(one), _middle(other)
    return float(((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5)


def _diagonal(observation: Observation) -> float:
    width, height = observation.frame.picture.size
    return float((width**2 + height**2) ** 0.5)
