"""Scenes and phrases of the tiny model's world against a checker that reads the words and looks at the layout."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import batches
import scenes
from blueprint import SLOT, SLOTS, Blueprint
from builders import TINY_INTERNVL, TINY_MODEL
from edgetune_runtime.codec.grounding import parse
from scenes import Query, Scene, Thing

NAMES = {entry["name"] for entry in scenes.OBJECTS}
# What the adaptation domain draws from; with repeats, so that three of a kind can meet.
MIXED = scenes.KNOWN + scenes.NOVEL * 5
# The object that an adjective means is the one with the greatest value.
GREATEST: dict[str, Callable[[Thing], float]] = {
    "left": lambda thing: -thing.box[0] - thing.box[2],
    "right": lambda thing: thing.box[0] + thing.box[2],
    "upper": lambda thing: -thing.box[1] - thing.box[3],
    "lower": lambda thing: thing.box[1] + thing.box[3],
    "larger": lambda thing: (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]),
    "smaller": lambda thing: -(thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]),
}
HOLDS: dict[str, Callable[[Thing, Thing], bool]] = {
    "above": lambda a, b: a.box[1] + a.box[3] < b.box[1] + b.box[3],
    "below": lambda a, b: a.box[1] + a.box[3] > b.box[1] + b.box[3],
    "left of": lambda a, b: a.box[0] + a.box[2] < b.box[0] + b.box[2],
    "right of": lambda a, b: a.box[0] + a.box[2] > b.box[0] + b.box[2],
}


def meant(phrase: str, scene: Scene) -> tuple[str, list[Thing]]:
    """Read a phrase as a person does: its kind, and every object of the scene that fits it."""

    def called(name: str) -> list[Thing]:
        assert name in NAMES, f"{phrase!r} names nothing"
        return [thing for thing in scene.things if scenes.OBJECTS[thing.kind]["name"] == name]

    words = phrase.removeprefix("the ")
    if words in NAMES:
        return "name", called(words)
    for relation, holds in HOLDS.items():
        first, found, second = words.partition(f" {relation} the ")
        if found:
            anchors = called(second)
            assert len(anchors) == 1, f"{phrase!r} leaves open which {second}"
            return relation, [thing for thing in called(first) if holds(thing, anchors[0])]
    adjective, _, name = words.partition(" ")
    candidates = called(name)
    assert len(candidates) > 1, f"{phrase!r} is about one of several"
    values = [GREATEST[adjective](thing) for thing in candidates]
    return adjective, [thing for thing, value in zip(candidates, values, strict=True) if value == max(values)]


def drawn(seed: int, count: int, kinds: list[int]) -> list[tuple[Scene, list[Query]]]:
    rng = random.Random(seed)
    result = []
    for _ in range(count):
        scene = scenes.draw_scene(rng, scenes.PHOTOS_OF["train"], kinds)
        queries = [scenes.draw_phrase(rng, scene, kinds) for _ in range(3)]
        result.append((scene, [*queries, scenes.draw_question(rng, scene, kinds)]))
    return result


@pytest.fixture(scope="module")
def world() -> list[tuple[Scene, list[Query]]]:
    return drawn(1, 2500, scenes.KNOWN) + drawn(2, 2500, MIXED)


def test_a_seed_gives_the_same_scenes_and_another_seed_others() -> None:
    assert drawn(3, 50, scenes.KNOWN) == drawn(3, 50, scenes.KNOWN)
    assert drawn(3, 50, scenes.KNOWN) != drawn(4, 50, scenes.KNOWN)


def test_splits_share_no_photograph() -> None:
    uses = Counter(photo for split in scenes.PHOTOS_OF.values() for photo in split)
    assert set(scenes.PHOTOS_OF) == {"train", "val", "test"}
    assert uses == Counter(range(len(scenes.PHOTOS)))


def test_known_and_novel_objects_are_all_there_is_and_have_names_of_their_own() -> None:
    assert sorted(scenes.KNOWN + scenes.NOVEL) == list(range(len(scenes.OBJECTS)))
    assert len(NAMES) == len(scenes.OBJECTS) > 400


def test_layouts(world: list[tuple[Scene, list[Query]]]) -> None:
    for scene, _ in world:
        width, height = scene.size
        boxes = np.array([thing.box for thing in scene.things])
        assert scene.size in scenes.CANVASES and 2 <= len(boxes) <= 7
        assert scene.photo in scenes.PHOTOS_OF["train"]
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        sides = (boxes[:, 2:] - boxes[:, :2]).max(1) / min(width, height)
        assert (sides > scenes.SMALLEST - 1e-6).all() and (sides < scenes.LARGEST + 1e-6).all()
        low, high = (
            np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
            np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
        )
        shared = np.clip(high - low, 0, None).prod(-1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
        np.fill_diagonal(shared, 0)
        assert shared.max() <= scenes.MAX_COVER + 1e-9
        x, y, w, h = scene.crop
        assert min(x, y, w, h) >= 0 and x + w <= 1 and y + h <= 1
        assert w * 640 / (h * 480) == pytest.approx(width / height)  # the photograph is not stretched


def test_every_phrase_means_exactly_its_object(world: list[tuple[Scene, list[Query]]]) -> None:
    kinds: Counter[str] = Counter()
    for scene, queries in world:
        for query in queries:
            if query.kind == scenes.GROUND and query.boxes:
                kind, fitting = meant(query.text, scene)
                assert [thing.box for thing in fitting] == query.boxes, (query.text, scene)
                kinds[kind] += 1
    assert set(kinds) == {"name", *GREATEST, *HOLDS} and min(kinds.values()) > 50


def test_absent_objects_are_absent(world: list[tuple[Scene, list[Query]]]) -> None:
    absent = [(scene, q) for scene, queries in world for q in queries if q.kind == scenes.GROUND and not q.boxes]
    for scene, query in absent:
        assert query.text.removeprefix("the ") in NAMES
        assert query.text.removeprefix("the ") not in {scenes.OBJECTS[thing.kind]["name"] for thing in scene.things}
    assert 0.06 < len(absent) / (3 * len(world)) < 0.12


def test_every_answer_to_a_question_is_true(world: list[tuple[Scene, list[Query]]]) -> None:
    answers: Counter[str] = Counter()
    for scene, queries in world:
        text, answer = queries[-1].text, queries[-1].answer
        there = Counter(scenes.OBJECTS[thing.kind]["name"] for thing in scene.things)
        if text.startswith("How many"):
            assert answer == str(len(scene.things))
            answers["count"] += 1
        elif text.startswith("Is there"):
            name = text.removeprefix("Is there a picture of the ").removesuffix("?")
            assert answer == ("yes" if there[name] else "no") and name in NAMES
            answers[str(answer)] += 1
        else:
            pair = text.removeprefix("Which is larger, the ").removesuffix("?").split(" or the ")
            size = {scenes.OBJECTS[thing.kind]["name"]: GREATEST["larger"](thing) for thing in scene.things}
            assert there[pair[0]] == there[pair[1]] == 1
            assert answer == f"the {max(pair, key=lambda name: size[name])}"
            answers["larger"] += 1
    assert set(answers) == {"count", "yes", "no", "larger"} and min(answers.values()) > 300


@pytest.mark.parametrize("folder", [TINY_MODEL, TINY_INTERNVL])
@pytest.mark.parametrize("canvas", range(len(scenes.CANVASES)))
def test_queries_fit_their_slots_and_read_back(folder: Path, canvas: int) -> None:
    rng, blueprint = random.Random(canvas), Blueprint.open(folder)
    layouts = [scenes.draw_scene(rng, [0], MIXED, canvas) for _ in range(60)]
    asked = [batches.ask(rng, scene, MIXED) for scene in layouts]
    tokens, spans = batches.tokenise(blueprint, canvas, asked)
    geometry, decode = blueprint.plan(canvas).geometry, blueprint.tokenizer.decode
    rows = zip(tokens.reshape(-1, SLOT), spans.reshape(-1, 2), chain.from_iterable(asked), strict=True)
    for row, span, query in rows:
        prompt = decode(row[: span[0]].tolist(), skip_special_tokens=False)
        answer = decode(row[span[0] : span[1]].tolist(), skip_special_tokens=False)
        assert query.text in prompt and prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert answer.endswith("<|im_end|>") and not row[span[1] :].any()
        if query.kind == scenes.VQA:
            assert answer == f"{query.answer}<|im_end|>"
            continue
        read = parse(answer.removesuffix("<|im_end|>"), geometry, blueprint.family.box_format)
        assert read.refused == (not query.boxes)
        for detection, box in zip(read.detections, query.boxes, strict=True):
            assert detection.label == query.text
            assert detection.box == pytest.approx(box, abs=max(scenes.CANVASES[canvas]) / 1000)


@pytest.mark.parametrize("folder", [TINY_MODEL, TINY_INTERNVL])
def test_the_longest_query_fits_a_slot(folder: Path) -> None:
    blueprint = Blueprint.open(folder)
    longest = sorted(NAMES, key=lambda name: len(blueprint.tokenizer.encode(f" {name}").ids))[-2:]
    width, height = scenes.CANVASES[0]
    corner = [(width - 0.6, height - 0.6, float(width), float(height))]  # four coordinates of three or four digits
    query = Query(scenes.GROUND, f"the {longest[0]} right of the {longest[1]}", corner)
    _, spans = batches.tokenise(blueprint, 0, [[query] * SLOTS])
    assert spans.max() <= SLOT


def test_a_query_longer_than_its_slot_is_refused() -> None:
    query = Query(scenes.GROUND, "the " + "very " * SLOT + "old owl", [])
    with pytest.raises(ValueError, match="a slot has 72"):
        batches.tokenise(Blueprint.open(TINY_MODEL), 0, [[query] * SLOTS])
