"""Questions that a scene answers: how many objects, what lies left of another, what colour something is.

Answers follow from the layout, and colours from the pixels of the object pictures. `choose` keeps the answers of each
kind of question even, so that guessing the most frequent one earns little.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

import scenes

CELL, COLUMNS = 112, 24  # of the atlas, as in render.py
COUNT, PLACE, COLOUR = "count", "place", "colour"
CLEAR = 0.6  # share of an object's pixels that must have one colour, or it is not asked for
APART = 0.05  # of the canvas: what is nearer than this to the anchor's own line is neither left nor right of it
_HUES = ((10, "red"), (33, "orange"), (65, "yellow"), (170, "green"), (260, "blue"), (300, "purple"), (325, "pink"))


@dataclass(frozen=True)
class Question:
    """A question with its one answer; `asks` is its kind: COUNT, PLACE or COLOUR."""

    asks: str
    text: str
    answer: str


def questions(scene: scenes.Scene) -> list[Question]:
    """Every question that has exactly one right answer in the scene."""
    kinds = Counter(thing.kind for thing in scene.things)
    single = [thing for thing in scene.things if kinds[thing.kind] == 1]
    found = [Question(COUNT, "How many objects are in the picture?", str(len(scene.things)))]
    for thing in single:
        if colour := colours()[thing.kind]:
            found.append(Question(COLOUR, f"What colour is the {thing.name}?", colour))
        for word, axis, sign in scenes.RELATIONS:
            others = [other for other in scene.things if other is not thing]
            ahead = [(other.centre[axis] - thing.centre[axis]) * sign / scene.size[axis] for other in others]
            on_side = [other for other, far in zip(others, ahead, strict=True) if far > APART]
            if len(on_side) == 1 and not any(abs(far) <= APART for far in ahead):
                found.append(Question(PLACE, f"What is {word} the {thing.name}?", f"the {on_side[0].name}"))
    return found


def choose(drawn: Sequence[scenes.Scene], count: int, rng: random.Random) -> list[list[Question]]:
    """Up to `count` questions about each scene, none of a kind, each the one whose answer was given least so far."""
    given: Counter[tuple[str, str]] = Counter()
    asked: Counter[str] = Counter()
    chosen = []
    for scene in drawn:
        left = questions(scene)
        rng.shuffle(left)
        mine: list[Question] = []
        while left and len(mine) < count:
            best = min(left, key=lambda one: (asked[one.asks], given[one.asks, one.answer]))
            mine.append(best)
            asked[best.asks] += 1
            given[best.asks, best.answer] += 1
            left = [one for one in left if one.asks != best.asks]
        chosen.append(mine)
    return chosen


@cache
def colours() -> list[str | None]:
    """The colour of each object, by its index; None where no single one prevails."""
    atlas = Image.open(scenes.ASSETS / "objects.webp").convert("RGBA")
    opaque = np.asarray(atlas)[..., 3] > 128
    named = _names(np.asarray(atlas.convert("RGB").convert("HSV")))
    found: list[str | None] = []
    for index in range(len(scenes.OBJECTS)):
        top, left = index // COLUMNS * CELL, index % COLUMNS * CELL
        cell = slice(top, top + CELL), slice(left, left + CELL)
        names, counts = np.unique(named[cell][opaque[cell]], return_counts=True)
        best = counts.argmax()
        found.append(str(names[best]) if counts[best] >= CLEAR * counts.sum() else None)
    return found


def _names(hsv: npt.NDArray[np.uint8]) -> npt.NDArray[np.str_]:
    """The colour name of each pixel of a picture uint8 [H, W, 3] in Pillow's HSV (hue 0-255 for the full circle)."""
    hue, saturation, value = hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255
    bounds, words = zip(*_HUES, strict=True)
    names = np.array([*words, "red"])[np.searchsorted(bounds, hue, side="right")]
    names = np.where(np.isin(names, ["red", "orange"]) & (value < 0.7), "brown", names)
    names = np.where(saturation < 0.2, np.where(value > 0.75, "white", "grey"), names)
    return np.where(value < 0.2, "black", names)
