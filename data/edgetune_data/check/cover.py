"""Copies of pictures in which what a redactor found is painted over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from edgetune_data.image_facts import ImageFacts
from edgetune_data.redactors import Region
from edgetune_runtime.images.load import load_image
from edgetune_runtime.records.dialogue import Place

IMAGES = "images"
_MARGIN = 0.1  # of a region's shorter side, on all of its sides: finders cut hair and descenders off


def regions_of(facts: ImageFacts) -> list[Region]:
    """Return all that the redactors found in a picture."""
    return [region for found in facts.seen.values() for region in found]


def copy_of(facts: ImageFacts, folder: Path) -> Path:
    """Return where a picture's covered copy is, in a folder."""
    return folder / IMAGES / f"{facts.path.stem}-{facts.sha256[:8]}.png"  # folders may share names of pictures


def write_copy(facts: ImageFacts, folder: Path) -> Path:
    """Write a picture with its regions covered; return the file.

    Raises:
        ImageError: the picture cannot be read any more.
    """
    path = copy_of(facts, folder)
    path.parent.mkdir(exist_ok=True)
    covered(facts).save(path)
    return path


def covered(facts: ImageFacts) -> Image.Image:
    """Return a picture whose regions, and a margin, have their own mean colour: blurring could be undone.

    Raises:
        ImageError: the picture cannot be read any more.
    """
    pixels = np.array(load_image(facts.path))  # uint8 [H, W, 3]
    for region in regions_of(facts):
        x1, y1, x2, y2 = _grown(region, facts.width, facts.height)
        part = pixels[y1:y2, x1:x2]
        part[:] = part.mean(axis=(0, 1)).round()
    return Image.fromarray(pixels)


def hidden(place: Place, regions: Sequence[Region], width: int, height: int) -> float:
    """Return which share of a box or point the covers hide, 0 to 1; overlapping covers count once.

    Args:
        place: in pixels of the picture.
        regions: what is covered.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """
    mask = np.zeros((height, width), bool)
    for region in regions:
        x1, y1, x2, y2 = _grown(region, width, height)
        mask[y1:y2, x1:x2] = True
    xs, ys = place.numbers[0::2], place.numbers[1::2]
    left, top = int(min(xs)), int(min(ys))
    inside = mask[top : max(top + 1, int(max(ys))), left : max(left + 1, int(max(xs)))]
    return float(inside.mean()) if inside.size else 0.0


def _grown(region: Region, width: int, height: int) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = region.box
    margin = _MARGIN * min(x2 - x1, y2 - y1)
    return (
        max(0, int(np.floor(x1 - margin))),
        max(0, int(np.floor(y1 - margin))),
        min(width, int(np.ceil(x2 + margin))),
        min(height, int(np.ceil(y2 + margin))),
    )
