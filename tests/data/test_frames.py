"""Boxes drawn on a picture as it is stored land where Pillow puts the same pixels when it turns the picture upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgetune_data.frames import Frame, frame_of
from edgetune_runtime.records.forms import FormError

WIDTH, HEIGHT = 60, 40
BOX = (10, 5, 25, 12)


def marked(path: Path, orientation: int) -> Path:
    """Write a black picture with a white box and an EXIF orientation."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    x1, y1, x2, y2 = BOX
    pixels[y1:y2, x1:x2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_box_is_turned_as_pillow_turns_the_picture(tmp_path: Path, orientation: int) -> None:
    path = marked(tmp_path / "a.png", orientation)
    with Image.open(path) as image:
        white = np.any(np.asarray(ImageOps.exif_transpose(image)), axis=2)
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    frame = frame_of(str(path), orientation="stored")
    assert frame.upright(BOX) == expected
    shares = [BOX[0] / WIDTH, BOX[1] / HEIGHT, BOX[2] / WIDTH, BOX[3] / HEIGHT]
    assert frame.upright(shares, unit="norm1") == expected
    assert frame.upright([share * 1000 for share in shares], unit="norm1000") == expected
    assert frame_of(str(path), orientation="upright").upright(BOX) == list(BOX)
    x1, y1, x2, y2 = frame.upright([BOX[2], BOX[1], BOX[0], BOX[3]])
    assert x1 > x2 or y1 > y2  # an inverted box is not mended


@pytest.mark.parametrize(("declared", "turn"), [((WIDTH, HEIGHT), 6), ((HEIGHT, WIDTH), 1)])
def test_the_declared_size_tells_the_frame(tmp_path: Path, declared: tuple[int, int], turn: int) -> None:
    assert frame_of(str(marked(tmp_path / "a.png", 6)), declared=declared) == Frame(*declared, turn)


def test_a_size_that_tells_nothing_is_not_guessed_about(tmp_path: Path) -> None:
    path = str(marked(tmp_path / "a.png", 3))
    with pytest.raises(FormError, match=r"stored turned \(EXIF orientation 3\)"):
        frame_of(path, declared=(WIDTH, HEIGHT))
    with pytest.raises(FormError, match="the data is for a 30x20 picture"):
        frame_of(path, declared=(30, 20))


def test_sums_that_binary_cannot_hold_are_tidied() -> None:
    assert Frame(640, 480).upright([0.1 + 0.2, 1.0005, 640.0000001, 12]) == [0.3, 1.0, 640, 12]
