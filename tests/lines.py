"""Lines of data files for tests, and the pictures they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pictures(folder: Path) -> Path:
    """Return the folder with one 64x48 picture in it and one that its EXIF data turns on its side."""
    (folder / "pictures").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    image.save(folder / "pictures" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "pictures" / "turned.jpg", exif=exif)
    return folder


def ground(**change: Any) -> dict[str, Any]:
    return {"image": "pictures/a.png", "text": "the cup", "bbox": [1, 2, 30.5, 40], **change}


def swift(user: str, answer: str, **objects: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}],
        "images": ["pictures/a.png"],
        "objects": objects,
    }


def ask(*turns: tuple[Any, ...], images: tuple[str, ...] = ("pictures/a.png",)) -> dict[str, Any]:
    """Return a conversation of (role, content[, loss]) turns."""
    return {
        "messages": [dict(zip(("role", "content", "loss"), turn, strict=False)) for turn in turns],
        "images": list(images),
    }
