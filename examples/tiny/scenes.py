"""Scenes of named objects, and what can be said about them, drawn from a seed.

A scene is only a layout: which photograph is behind, which objects lie where, and phrases whose answer follows from
the layout. `render.py` turns layouts into pixels. Boxes are xyxy in pixels of the scene's own canvas.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
OBJECTS: list[dict[str, Any]] = json.loads((ASSETS / "objects.json").read_text())
KNOWN = [i for i, entry in enumerate(OBJECTS) if not entry["novel"]]
NOVEL = [i for i, entry in enumerate(OBJECTS) if entry["novel"]]
PHOTOS = sorted(path.name for path in (ASSETS / "photos").glob("*.jpg"))
# Splits never share a photograph. Every sixth one is kept for tests, one more for validation.
PHOTOS_OF = {
    "test": [i for i in range(len(PHOTOS)) if i % 6 == 2],
    "val": [i for i in range(len(PHOTOS)) if i % 9 == 4],
}
PHOTOS_OF["train"] = [i for i in range(len(PHOTOS)) if i not in PHOTOS_OF["test"] + PHOTOS_OF["val"]]
CANVASES = [(360, 280), (280, 360), (320, 320), (400, 240), (240, 400)]  # width, height in pixels
SMALLEST, LARGEST = 0.17, 0.42  # longer side of an object over the shorter side of the canvas
MAX_COVER = 0.12  # of an object's box may be covered by another's
GROUND, VQA = "ground", "vqa"


@dataclass(slots=True)
class Thing:
    """One placed object: index into OBJECTS, box xyxy in canvas pixels, mirrored or not, brightness factor."""

    kind: int
    box: tuple[float, float, float, float]
    mirrored: bool
    brightness: float

    @property
    def name(self) -> str:
        """What the object is called."""
        return str(OBJECTS[self.kind]["name"])

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box (x, y) in canvas pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(slots=True)
class Scene:
    """A layout: canvas (width, height), photograph index, its crop (x, y, w, h as fractions), objects, back first."""

    size: tuple[int, int]
    photo: int
    crop: tuple[float, float, float, float]
    photo_mirrored: bool
    things: list[Thing]


@dataclass(slots=True)
class Query:
    """Something to ask of a scene: a phrase with its boxes (none when it is absent), or a question with its answer."""

    kind: str
    text: str
    boxes: list[tuple[float, float, float, float]]
    answer: str | None = None


def draw_scene(rng: random.Random, photos: list[int], kinds: list[int], canvas: int | None = None) -> Scene:
    """Place 2 to 7 objects so that none is covered by more than MAX_COVER; often two of the same kind."""
    width, height = CANVASES[rng.randrange(len(CANVASES)) if canvas is None else canvas]
    count = rng.randint(2, 7)
    chosen = rng.sample(kinds, count)
    if rng.random() < 0.5:  # a second one of a kind, so that left, right, larger … are needed
        chosen[-1] = chosen[0]
        if count >= 5 and rng.random() < 0.3:
            chosen[-2] = chosen[1]
    rng.shuffle(chosen)
    short = min(width, height)
    things: list[Thing] = []
    for kind in chosen:
        facts = OBJECTS[kind]
        longest = max(facts["width"], facts["height"])
        for _ in range(12):
            side = short * rng.uniform(SMALLEST, LARGEST)
            w, h = side * facts["width"] / longest, side * facts["height"] / longest
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            box = (x, y, x + w, y + h)
            if all(_cover(box, other.box) <= MAX_COVER for other in things):
                things.append(Thing(kind, box, rng.random() < 0.5, rng.uniform(0.85, 1.1)))
                break
    scale = rng.uniform(0.35, 1.0)
    aspect = (width / height) / (640 / 480)
    cw, ch = (scale, scale / aspect) if aspect >= 1 else (scale * aspect, scale)
    crop = (rng.uniform(0, 1 - cw), rng.uniform(0, 1 - ch), cw, ch)
    return Scene((width, height), rng.choice(photos), crop, rng.random() < 0.5, things)


def _cover(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def draw_phrase(rng: random.Random, scene: Scene, kinds: list[int], absent: float = 0.08) -> Query:
    """A phrase that means exactly one object of the scene, or (with probability `absent`) none."""
    present = {thing.kind for thing in scene.things}
    if rng.random() < absent:
        while (kind := rng.choice(kinds)) in present:
            pass
        return Query(GROUND, f"the {OBJECTS[kind]['name']}", [])
    order = scene.things[:]
    rng.shuffle(order)
    for thing in order:
        twins = [other for other in scene.things if other.kind == thing.kind and other is not thing]
        phrase = _tell_apart(rng, scene, thing, twins) if twins else f"the {thing.name}"
        if not twins and rng.random() < 0.12:
            phrase = _relation(rng, scene, thing, []) or phrase
        if phrase is not None:
            return Query(GROUND, phrase, [thing.box])
    return draw_phrase(rng, scene, kinds, absent=1.0)


def _tell_apart(rng: random.Random, scene: Scene, thing: Thing, twins: list[Thing]) -> str | None:
    """Words that single out `thing` among its twins by a clear margin, or None."""
    ways = []
    for axis, before, after in ((0, "left", "right"), (1, "upper", "lower")):
        apart = [(thing.centre[axis] - twin.centre[axis]) / scene.size[axis] for twin in twins]
        if max(apart) < -0.12 or min(apart) > 0.12:
            ways.append(f"the {before if apart[0] < 0 else after} {thing.name}")
    areas = [twin.area for twin in twins]
    if thing.area > 1.6 * max(areas) or 1.6 * thing.area < min(areas):
        ways.append(f"the {'larger' if thing.area > areas[0] else 'smaller'} {thing.name}")
    relation = _relation(rng, scene, thing, twins)
    if relation:
        ways.append(relation)
    return rng.choice(ways) if ways else None


def _relation(rng: random.Random, scene: Scene, thing: Thing, twins: list[Thing]) -> str | None:
    """`the owl above the door`: true of `thing`, clearly untrue of every twin."""
    kinds = [other.kind for other in scene.things]
    anchors = [other for other in scene.things if kinds.count(other.kind) == 1 and other.kind != thing.kind]
    rng.shuffle(anchors)
    for anchor in anchors:
        for word, axis, sign in rng.sample(RELATIONS, len(RELATIONS)):
            if _holds(scene, thing, anchor, axis, sign) and not any(
                (twin.centre[axis] - anchor.centre[axis]) * sign > -0.05 * scene.size[axis] for twin in twins
            ):
                return f"the {thing.name} {word} the {anchor.name}"
    return None


RELATIONS = [("above", 1, -1), ("below", 1, 1), ("left of", 0, -1), ("right of", 0, 1)]


def _holds(scene: Scene, thing: Thing, anchor: Thing, axis: int, sign: int) -> bool:
    along = (thing.centre[axis] - anchor.centre[axis]) * sign / scene.size[axis]
    across = abs(thing.centre[1 - axis] - anchor.centre[1 - axis]) / scene.size[1 - axis]
    return along > 0.12 and along > across


def draw_question(rng: random.Random, scene: Scene, kinds: list[int]) -> Query:
    """A question with a one-word answer: presence, number of objects, or which of two is larger."""
    what = rng.randrange(3)
    if what == 0:
        return Query(VQA, "How many objects are in the picture?", [], str(len(scene.things)))
    singles = [t for t in scene.things if sum(o.kind == t.kind for o in scene.things) == 1]
    if what == 1 and len(singles) >= 2:
        a, b = rng.sample(singles, 2)
        if max(a.area, b.area) > 1.5 * min(a.area, b.area):
            larger = a if a.area > b.area else b
            return Query(VQA, f"Which is larger, the {a.name} or the {b.name}?", [], f"the {larger.name}")
    present = {thing.kind for thing in scene.things}
    kind = rng.choice(list(present)) if rng.random() < 0.5 else rng.choice(kinds)
    return Query(VQA, f"Is there a picture of the {OBJECTS[kind]['name']}?", [], "yes" if kind in present else "no")
