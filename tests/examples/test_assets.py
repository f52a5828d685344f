"""The committed pictures: credited one by one, and small."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

import render
import scenes

CREDITS = (scenes.ASSETS / "LICENSES.md").read_text(encoding="utf-8")


def test_every_photograph_is_credited_with_author_year_and_licence() -> None:
    rows = re.findall(
        r"^\| `(\S+\.jpg)` \| [^|]+, 20\d\d \| \[CC[^\]]+\]\(https://creativecommons\.org/\S+\) \|$", CREDITS, re.M
    )
    assert sorted(rows) == scenes.PHOTOS


def test_the_pictures_packages_are_credited() -> None:
    for owner in ("Microsoft", "LobeHub", "Mu-An Chiou"):
        assert re.search(rf"Copyright \(c\) .*{owner}", CREDITS)


def test_pictures_have_the_sizes_that_the_renderer_counts_on() -> None:
    for name in scenes.PHOTOS:
        assert Image.open(scenes.ASSETS / "photos" / name).size == (render.PHOTO_W, render.PHOTO_H)
    alpha = np.asarray(Image.open(scenes.ASSETS / "objects.webp").convert("RGBA"))[..., 3]
    for index, entry in enumerate(scenes.OBJECTS):
        top, left = index // render.COLUMNS * render.CELL, index % render.COLUMNS * render.CELL
        cell = alpha[top : top + render.CELL, left : left + render.CELL]
        assert max(entry["width"], entry["height"]) == render.CELL
        assert cell[: entry["height"], : entry["width"]].max() > 200
        assert not cell[entry["height"] :].any() and not cell[:, entry["width"] :].any()


def test_assets_stay_small() -> None:
    assert sum(path.stat().st_size for path in scenes.ASSETS.rglob("*") if path.is_file()) < 10_000_000
