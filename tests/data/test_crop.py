"""Crops are the very pixels of the original, boxes move along exactly, and the size rules hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetune.cli import cli
from edgetune_data.crop import moved_into, window
from edgetune_data.settings import CropRules
from edgetune_runtime.bench.metrics import iou
from edgetune_runtime.records import read_entries
from edgetune_runtime.records.dialogue import Place


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", "crop", *map(str, arguments)], prog_name="edgetune")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder: Path, *values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def noise(path: Path, width: int, height: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Save a picture without two equal neighbourhoods and return its pixels."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def cut(pixels: np.ndarray[Any, Any], value: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the crop should be, by plain slicing."""
    x1, y1, x2, y2 = value["meta"]["origin"]["crop"]
    return pixels[y1:y2, x1:x2]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Place], int, int, CropRules]:
    """Boxes and points in a picture, and rules."""
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    places = []
    for _ in range(draw(st.integers(1, 4))):
        x = sorted(draw(st.tuples(st.floats(0, width), st.floats(0, width))))
        y = sorted(draw(st.tuples(st.floats(0, height), st.floats(0, height))))
        point = draw(st.booleans()) or x[1] - x[0] < 0.01 or y[1] - y[0] < 0.01
        places.append(Place((x[0], y[0]) if point else (x[0], y[0], x[1], y[1])))
    least = draw(st.integers(1, 400))
    most = draw(st.one_of(st.none(), st.integers(least, 2000)))
    rules = CropRules(
        margin=draw(st.floats(0, 3)),
        min_size=least,
        max_size=most,
        max_aspect=draw(st.floats(1, 10)),
        min_visible=draw(st.floats(0.01, 1)),
    )
    return places, width, height, rules


@settings(deadline=None)
@given(situations())
def test_a_window_holds_its_objects_and_keeps_the_rules(situation: tuple[list[Place], int, int, CropRules]) -> None:
    places, width, height, rules = situation
    x1, y1, x2, y2 = window(places, width, height, rules)
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    for place in places:
        assert all(x1 <= x <= x2 for x in place.numbers[::2]) and all(y1 <= y <= y2 for y in place.numbers[1::2])
    assert x2 - x1 >= min(rules.min_size, width) and y2 - y1 >= min(rules.min_size, height)
    longer, shorter = max(x2 - x1, y2 - y1), min(x2 - x1, y2 - y1)
    reached = shorter in (width, height)
    assert reached or longer <= math.ceil(shorter * rules.max_aspect) + 1
    if rules.max_size is not None:
        xs = [x for place in places for x in place.numbers[::2]]
        ys = [y for place in places for y in place.numbers[1::2]]
        objects = max(math.ceil(max(xs)) - math.floor(min(xs)), math.ceil(max(ys)) - math.floor(min(ys)), 1)
        assert longer <= max(rules.max_size, objects)


@settings(deadline=None)
@given(situations())
def test_boxes_that_are_inside_are_shifted_and_nothing_else(
    situation: tuple[list[Place], int, int, CropRules],
) -> None:
    places, width, height, rules = situation
    corner = window(places, width, height, rules)
    for place in places:
        moved, visible = moved_into(place, corner, rules.min_visible)
        assert moved is not None and visible == 1
        offset = np.array([corner[0], corner[1]] * (len(place.numbers) // 2))
        np.testing.assert_allclose(np.array(moved.numbers) + offset, place.numbers, atol=1e-9)


@settings(deadline=None)
@given(
    box=st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(1, 200)] * 2),
    corner=st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(1, 200)] * 2),
    least=st.floats(0.01, 1),
)
def test_cut_boxes_are_the_visible_part_of_the_original(
    box: tuple[int, ...], corner: tuple[int, ...], least: float
) -> None:
    whole = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], dtype=np.float64)
    around = (corner[0], corner[1], corner[0] + corner[2], corner[1] + corner[3])
    canvas = np.zeros((640, 640), dtype=bool)
    canvas[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    seen = canvas[around[1] : around[3], around[0] : around[2]]  # the box, painted and cut as a picture would be
    moved, visible = moved_into(Place(tuple(whole)), around, least)
    assert visible == pytest.approx(seen.sum() / canvas.sum())
    assert (moved is None) == (visible < least)
    if moved is not None:
        ys, xs = np.nonzero(seen)
        assert moved.numbers == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        back = np.add(moved.numbers, [around[0], around[1], around[0], around[1]])
        # A part of a box overlaps the box by exactly its share of it.
        assert iou([back], [whole])[0, 0] == pytest.approx(visible)


def test_crops_are_slices_of_the_original(tmp_path: Path) -> None:
    pixels = noise(tmp_path / "in" / "a.png", 700, 500)
    boxes: list[list[float]] = [[100, 120, 180.5, 160.25], [650, 10, 700, 60], [0, 0, 700, 500]]
    values = [{"image": "a.png", "text": f"mug {i}", "bbox": box, "id": f"r{i}"} for i, box in enumerate(boxes)]
    path = write(tmp_path / "in", *values)
    before = (tmp_path / "in" / "a.png").read_bytes()
    done = run(path, "--output", tmp_path / "out", "--min-size", "64")
    assert done.exit_code == 0 and "3 records: 2 on crops, 1 as they were" in done.stdout
    first, second, third = lines(tmp_path / "out" / "data.jsonl")
    for value, box in zip((first, second), boxes, strict=False):
        crop = np.asarray(Image.open(tmp_path / "out" / value["image"]))
        np.testing.assert_array_equal(crop, cut(pixels, value))
        x1, y1 = value["meta"]["origin"]["crop"][:2]
        np.testing.assert_allclose(np.add(value["bbox"], [x1, y1, x1, y1]), box)
        assert (tmp_path / "out" / value["meta"]["origin"]["image"]).resolve() == tmp_path / "in" / "a.png"
    assert second["meta"]["origin"]["crop"] == [600, 0, 700, 100]  # moved back into the picture
    assert third == {**values[2], "image": "../in/a.png"}  # the crop would be the whole picture
    assert (tmp_path / "in" / "a.png").read_bytes() == before
    assert len(read_entries(tmp_path / "out" / "data.jsonl")) == 3


def test_boxes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    pixels = noise(tmp_path / "in" / "b.png", 400, 300)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees against the clock
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png", exif=exif)
    path = write(tmp_path / "in", {"image": "a.png", "text": "mug", "bbox": [200, 300, 260, 380]})
    run(path, "--output", tmp_path / "out", "--min-size", "10", "--margin", "0.1")
    [value] = lines(tmp_path / "out" / "data.jsonl")
    crop = np.asarray(Image.open(tmp_path / "out" / value["image"]))
    np.testing.assert_array_equal(crop, cut(np.rot90(pixels), value))


def test_box_by_box_others_go_along_as_far_as_they_are_seen(tmp_path: Path) -> None:
    pixels = noise(tmp_path / "in" / "a.png", 1000, 400)
    boxes = [[100, 100, 200, 200], [230, 100, 330, 200], [800, 100, 900, 200]]
    value = {"image": "a.png", "text": "mugs", "bbox": boxes, "label": ["red", "green", "blue"], "id": "x"}
    path = write(tmp_path / "in", value)
    command = (path, "--output", tmp_path / "out", "--around", "box", "--min-size", "10", "--margin", "0.5")
    done = run(*command)
    assert "3 records: 3 on crops, 0 as they were; 0 boxes cut, 2 left out" in done.stdout
    first, second, third = lines(tmp_path / "out" / "data.jsonl")
    # Around the first: 50-250, where a fifth of the second is seen, too little; around the second likewise.
    assert (first["label"], first["bbox"], first["id"]) == (["red"], [[50, 50, 150, 150]], "x#1")
    assert (second["label"], second["bbox"]) == (["green"], [[50, 50, 150, 150]])
    assert third["label"] == ["blue"]
    for line in (first, second, third):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / line["image"])), cut(pixels, line))
    notes = [line["notes"] for line in lines(tmp_path / "out" / "changes.jsonl")]
    assert notes == [["box 2 left out: 20% of it is in the crop"], ["box 1 left out: 20% of it is in the crop"], []]
    run(*command, "--min-visible", "0.2")
    first = lines(tmp_path / "out" / "data.jsonl")[0]
    assert (first["label"], first["bbox"]) == (["red", "green"], [[50, 50, 150, 150], [180, 50, 200, 150]])


def test_around_the_picture_all_records_share_a_crop(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png", 900, 600)
    values = [
        {"image": "a.png", "text": "mug", "bbox": [300, 300, 340, 340]},
        {"image": "a.png", "text": "jug", "bbox": [400, 350, 440, 390]},
    ]
    run(write(tmp_path / "in", *values), "--output", tmp_path / "out", "--around", "picture", "--min-size", "20")
    first, second = lines(tmp_path / "out" / "data.jsonl")
    assert first["image"] == second["image"]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    assert first["meta"]["origin"]["crop"] == [230, 255, 510, 435]


def test_dialogues_of_several_pictures_and_points_move_along(tmp_path: Path) -> None:
    pixels = [noise(tmp_path / "in" / f"{name}.png", 600, 600, seed) for seed, name in enumerate("ab")]
    turns = [
        {"role": "user", "content": "<image><image>Where is <ref-object>?"},
        {"role": "assistant", "content": "Its handle is at <bbox>, and there is another at <bbox>."},
    ]
    objects = {"ref": ["the mug"], "bbox": [[500, 510], [100, 100, 140, 130]], "image_id": [1, 0]}
    value = {"messages": turns, "images": ["a.png", "b.png"], "objects": objects}
    run(write(tmp_path / "in", value), "--output", tmp_path / "out", "--min-size", "50")
    [moved] = lines(tmp_path / "out" / "data.jsonl")
    read_entries(tmp_path / "out" / "data.jsonl")
    origins = {Path(origin["image"]).name: origin["crop"] for origin in moved["meta"]["origins"]}
    for name, image, original in zip(("a.png", "b.png"), moved["images"], pixels, strict=True):
        x1, y1, x2, y2 = origins[name]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / image)), original[y1:y2, x1:x2])
    x1, y1 = origins["b.png"][:2]
    assert moved["objects"]["bbox"][0] == [500 - x1, 510 - y1]
    x1, y1 = origins["a.png"][:2]
    assert moved["objects"]["bbox"][1] == [100 - x1, 100 - y1, 140 - x1, 130 - y1]


def test_a_crop_of_a_crop_names_the_first_original(tmp_path: Path) -> None:
    pixels = noise(tmp_path / "in" / "a.png", 900, 900)
    path = write(tmp_path / "in", {"image": "a.png", "text": "mug", "bbox": [400, 410, 440, 450]})
    run(path, "--output", tmp_path / "one", "--min-size", "300")
    run(tmp_path / "one", "--output", tmp_path / "two", "--min-size", "60")
    [value] = lines(tmp_path / "two" / "data.jsonl")
    assert (tmp_path / "two" / value["meta"]["origin"]["image"]).resolve() == tmp_path / "in" / "a.png"
    crop = np.asarray(Image.open(tmp_path / "two" / value["image"]))
    np.testing.assert_array_equal(crop, cut(pixels, value))
    x1, y1 = value["meta"]["origin"]["crop"][:2]
    assert [value["bbox"][0] + x1, value["bbox"][1] + y1] == [400, 410]


def test_what_has_no_box_is_kept_or_dropped(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png", 900, 600)
    values: list[dict[str, Any]] = [
        {"image": "a.png", "text": "mug", "bbox": [300, 300, 340, 340]},
        {"image": "a.png", "text": "cactus", "bbox": []},
        {"image": "a.png", "question": "How many?", "answer": "1"},
    ]
    path = write(tmp_path / "in", *values)
    run(path, "--output", tmp_path / "out")
    assert [value["image"] for value in lines(tmp_path / "out" / "data.jsonl")[1:]] == ["../in/a.png"] * 2
    reasons = [line.get("reason") for line in lines(tmp_path / "out" / "changes.jsonl")]
    assert reasons == [None, "a ground record without boxes", "a vqa record without boxes"]
    done = run(path, "--output", tmp_path / "out", "--rest", "drop")
    assert "2 dropped" in done.stdout and len(lines(tmp_path / "out" / "data.jsonl")) == 1


def test_originals_stay_beside_their_crops_when_asked_for(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png", 900, 600)
    value = {"image": "a.png", "text": "mugs", "bbox": [[300, 300, 340, 340], [20, 20, 60, 60]]}
    path = write(tmp_path / "in", value)
    run(path, "--output", tmp_path / "out", "--originals", "--around", "box")
    first, *crops = lines(tmp_path / "out" / "data.jsonl")
    assert first == {**value, "image": "../in/a.png"}
    assert [len(crop["bbox"]) for crop in crops] == [1, 1]


def test_bad_data_and_bad_rules_are_one_line(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png", 90, 60)
    path = write(tmp_path / "in", {"image": "a.png", "text": "mug", "bbox": [30, 30, 34, 94]})
    done = run(path, "--output", tmp_path / "out")
    assert done.exit_code == 2 and f"{path}:1: " in done.stderr
    done = run(path, "--output", tmp_path / "out", "--max-size", "100")
    assert done.exit_code == 2 and "--max-size 100 is less than --min-size 224" in done.stderr
