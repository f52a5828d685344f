"""What several suites need of an answer: its kind, its one box in fractions of the picture, the picture's bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from edgetune_runtime.bench.scores import Row
from edgetune_runtime.images.load import load_image, upright_size

_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


def questions(rows: Sequence[Row]) -> list[Row]:
    """The answers in words."""
    return [row for row in rows if row["kind"] == "vqa"]


def referring(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The answers about exactly one target, all that a RefCOCO-style set can hold, and what is left out."""
    ground = [row for row in rows if row["kind"] == "ground"]
    kept = [row for row in ground if len(row["truth"]) == 1]
    lost = len(ground) - len(kept)
    return kept, [f"{lost} phrases with no or several targets: a RefCOCO-style set has exactly one"] if lost else []


def fractions(row: Row, box: Sequence[float]) -> str:
    """A box as `[x1, y1, x2, y2]` in fractions of width and height: what both suites' readers take for normalised."""
    width, height = upright_size(Path(row["image"]))
    return "[" + ", ".join(f"{value:.6f}" for value in _scaled(box, width, height)) + "]"


def said(row: Row) -> str:
    """The first box of an answer in fractions, or nothing: suites that look for numbers find none then."""
    return fractions(row, row["boxes"][0]) if row["boxes"] else ""


def picture_bytes(path: Path) -> bytes:
    """The file as it is, or upright as PNG where it is stored on its side, which other readers may not turn."""
    with Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    if not turned:
        return path.read_bytes()
    buffer = io.BytesIO()
    load_image(path).save(buffer, "PNG")
    return buffer.getvalue()


def file_name(model: str) -> str:
    """A row's name with letters, digits, `.`, `_` and `-` only: what suites make of a model's name, too."""
    return re.sub(r"[^\w.-]", "_", model)


def identity(row: Row) -> Any:
    """The record's own id, or where it stands."""
    return row.get("id") or row["source"]


def _scaled(box: Sequence[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1 / width, y1 / height, x2 / width, y2 / height]
