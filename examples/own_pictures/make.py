"""Draw what somebody might start from: twenty pictures of a few things that the tiny model has never seen, and a table.

The table is what a labelling tool exports, one row a box, with the slips that such tables have: a row that is there
twice, corners in the wrong order, a phrase that says nothing, a picture that was not copied to its end. A second set,
of pictures taken later, has none; it tells how well the tuned model does.

Usage: `python make.py --output DIR` writes DIR/pictures, DIR/boxes.csv and DIR/later, DIR/later.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny"))

import render
import scenes

MINE = ("anchor", "toothbrush", "dagger", "shield", "paper lantern", "satellite")
COLUMNS = ("image", "text", "x1", "y1", "x2", "y2")
PICTURES, LATER = 20, 40


def draw(folder: Path, count: int, seed: int, photos: list[int]) -> list[dict[str, Any]]:
    """Draw pictures into a folder and return a row for each object in them."""
    rng = random.Random(seed)
    kinds = [index for index in scenes.NOVEL if scenes.OBJECTS[index]["name"] in MINE]
    assets = render.load_assets()
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        scene = scenes.draw_scene(rng, photos, kinds * 2, canvas=number % len(scenes.CANVASES))
        things, backgrounds = (torch.from_numpy(array) for array in render.pack([scene]))
        [pixels] = render.render(assets, things, backgrounds, *scene.size).round().byte().numpy()
        name = f"{folder.name}/{number:03}.jpg"
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder.parent / name, quality=95)
        single = [thing for thing in scene.things if [other.kind for other in scene.things].count(thing.kind) == 1]
        for thing in single or scene.things[:1]:
            box = [round(value, 1) for value in thing.box]
            rows.append({"image": name, "text": f"the {thing.name}", **dict(zip(COLUMNS[2:], box, strict=True))})
    return rows


def slip(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the rows with what goes wrong by hand."""
    rows = [dict(row) for row in rows]
    rows[5]["x1"], rows[5]["x2"] = rows[5]["x2"], rows[5]["x1"]
    rows[11]["text"] = "that thing"
    rows.insert(17, dict(rows[16]))
    last = folder / rows[-1]["image"]
    last.write_bytes(last.read_bytes()[:9000])
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args(arguments).output
    write(output / "boxes.csv", slip(draw(output / "pictures", PICTURES, 1, scenes.PHOTOS_OF["train"]), output))
    write(output / "later.csv", draw(output / "later", LATER, 2, scenes.PHOTOS_OF["test"]))


if __name__ == "__main__":
    main()
