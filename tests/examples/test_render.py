"""Drawn scenes against Pillow: where objects land, which pixels they change, and how pictures shrink."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

import render
import scenes
from blueprint import Blueprint
from builders import TINY_INTERNVL, TINY_MODEL
from scenes import Scene, Thing
from view import cubic, resize

ATLAS = Image.open(scenes.ASSETS / "objects.webp").convert("RGBA")
WHOLE = (0.0, 0.0, 1.0, 1.0)  # crop


@pytest.fixture(scope="module")
def assets() -> render.Assets:
    return render.load_assets()


def draw(assets: render.Assets, *layouts: Scene, regions: bool | None = None) -> npt.NDArray[np.float32]:
    """Pictures [B, H, W, 3] of scenes of one size."""
    things, photos = (torch.from_numpy(array) for array in render.pack(list(layouts)))
    pictures: npt.NDArray[np.float32] = render.render(assets, things, photos, *layouts[0].size, regions).numpy()
    return pictures


def random_scenes(seed: int, canvas: int, count: int) -> list[Scene]:
    rng = random.Random(seed)
    return [scenes.draw_scene(rng, scenes.PHOTOS_OF["test"], scenes.KNOWN, canvas) for _ in range(count)]


@pytest.mark.parametrize("mirrored", [False, True])
def test_at_their_own_size_object_and_photograph_are_the_files_pixels(assets: render.Assets, mirrored: bool) -> None:
    kind, left, top = 20, 301, 87
    width, height = scenes.OBJECTS[kind]["width"], scenes.OBJECTS[kind]["height"]
    box = (float(left), float(top), float(left + width), float(top + height))
    scene = Scene((render.PHOTO_W, render.PHOTO_H), 5, WHOLE, mirrored, [Thing(kind, box, mirrored, 1.0)])
    expected = Image.open(scenes.ASSETS / "photos" / scenes.PHOTOS[5]).convert("RGBA")
    x, y = kind % render.COLUMNS * render.CELL, kind // render.COLUMNS * render.CELL
    sprite = ATLAS.crop((x, y, x + width, y + height))
    if mirrored:
        expected, sprite = ImageOps.mirror(expected), ImageOps.mirror(sprite)
    expected.alpha_composite(sprite, (left, top))
    difference = np.abs(draw(assets, scene)[0] - np.asarray(expected.convert("RGB"), dtype=np.float32))
    assert difference.max() < 1.6  # two roundings to whole levels


@pytest.mark.parametrize("canvas", range(len(scenes.CANVASES)))
def test_drawing_regions_equals_drawing_whole_canvases(assets: render.Assets, canvas: int) -> None:
    layouts = random_scenes(canvas, canvas, 3)
    assert np.array_equal(draw(assets, *layouts, regions=True), draw(assets, *layouts, regions=False))


def test_a_box_bounds_the_pixels_that_its_object_changes(assets: render.Assets) -> None:
    for canvas in range(len(scenes.CANVASES)):
        for scene in random_scenes(50 + canvas, canvas, 4):
            for thing in scene.things:
                alone = Scene(scene.size, scene.photo, scene.crop, scene.photo_mirrored, [thing])
                empty = Scene(scene.size, scene.photo, scene.crop, scene.photo_mirrored, [])
                with_it, without = draw(assets, alone, empty)
                changed = np.abs(with_it - without).max(-1) > 2
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                bounds = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                assert bounds == pytest.approx(thing.box, abs=2.5), (thing, bounds)  # soft edges


def test_objects_later_in_the_list_lie_in_front(assets: render.Assets) -> None:
    kinds = [kind for kind, entry in enumerate(scenes.OBJECTS) if entry["width"] == entry["height"] == render.CELL]
    behind, front = (Thing(kind, (100.0, 100.0, 212.0, 212.0), False, 1.0) for kind in kinds[:2])
    both, only = (draw(assets, Scene((320, 320), 0, WHOLE, False, things))[0] for things in ([behind, front], [front]))
    x, y = front.kind % render.COLUMNS * render.CELL, front.kind // render.COLUMNS * render.CELL
    opaque = np.asarray(ATLAS.crop((x, y, x + 112, y + 112)))[..., 3] == 255
    assert opaque.sum() > 1000
    inside = slice(100, 212), slice(100, 212)
    assert both[inside][opaque] == pytest.approx(only[inside][opaque], abs=0.1)
    assert np.abs(both - only).max() > 50


@pytest.mark.parametrize("folder", [TINY_MODEL, TINY_INTERNVL])
@pytest.mark.parametrize("canvas", range(len(scenes.CANVASES)))
def test_the_resize_is_pillows_bicubic(assets: render.Assets, folder: Path, canvas: int) -> None:
    geometry = Blueprint.open(folder).plan(canvas).geometry
    w, h = geometry.resized_width, geometry.resized_height
    picture = draw(assets, *random_scenes(9, canvas, 1)).round()
    ours = resize(torch.from_numpy(picture), cubic(geometry.height, h), cubic(geometry.width, w))[0].numpy()
    pillow = Image.fromarray(picture[0].astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    difference = np.abs(ours - np.asarray(pillow, dtype=np.float32))
    assert difference.max() <= 3 and difference.mean() < 0.3  # Pillow rounds between its two passes


def test_night_is_dim_noisy_and_bluish_and_follows_its_seed(assets: render.Assets) -> None:
    day = torch.from_numpy(draw(assets, *random_scenes(1, 2, 4)))
    night = render.night(day, torch.Generator().manual_seed(1))
    assert night.mean() < 0.25 * day.mean() and night.min() >= 0
    colour = night.mean((0, 1, 2)) / day.mean((0, 1, 2))
    assert colour[2] > colour[1] > colour[0]
    flat = render.night(torch.full((1, 64, 64, 3), 128.0), torch.Generator().manual_seed(1))
    assert flat.std((1, 2)).min() > 1
    assert torch.equal(night, render.night(day, torch.Generator().manual_seed(1)))
    assert not torch.equal(night, render.night(day, torch.Generator().manual_seed(2)))
