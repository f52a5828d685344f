"""Conversations of any number of turns about any number of pictures: to train and calibrate on, beside questions.

Boxes and points inside a turn are places, not text: the codec writes them for the model that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Picture:
    """Where a picture stands in a turn: the `index`-th one of the dialogue, from 0."""

    index: int


@dataclass(frozen=True)
class Name:
    """The name of an object, which some families put between tags."""

    text: str


@dataclass(frozen=True)
class Place:
    """A box or a point in a turn.

    Attributes:
        numbers: (x1, y1, x2, y2) or (x, y), in pixels of the original upright image.
        image: the picture it lies on, from 0.
    """

    numbers: tuple[float, ...]
    image: int = 0


Part = str | Picture | Name | Place
"""A piece of a turn; adjoining pieces follow each other without a space."""


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: who speaks.
        parts: what is said, in order.
        learned: the model learns to say it; only ever true of the assistant.
    """

    role: Role
    parts: tuple[Part, ...]
    learned: bool


@dataclass(frozen=True)
class Dialogue:
    """A conversation that is trained or calibrated on and cannot be scored as one answer.

    Attributes:
        images: paths of the pictures; none for text alone.
        turns: a system turn first or none, then user and assistant in turn; the assistant is last.
        source: where it comes from, e.g. "data.jsonl:17".
        id: the record's own name, or None.
        meta: whatever else the file says of it.
    """

    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
    source: str
    id: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def places(self) -> list[Place]:
        """All boxes and points, in order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Place)]
