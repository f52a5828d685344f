"""Pictures that two sets share are found by what they show, with imagehash as the reference of the perceptual hash."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from data.broken import photographs
from edgetune_core.overlap import NEAR, overlap, perceptual_hash

PHOTOS = photographs()


@pytest.mark.parametrize("photo", PHOTOS[::3], ids=lambda path: str(path.stem))
def test_the_hash_is_imagehash_s(photo: Path) -> None:
    image = Image.open(photo).convert("RGB")
    ours = np.unpackbits(perceptual_hash(image)).reshape(8, 8).astype(bool)
    assert str(imagehash.ImageHash(ours)) == str(imagehash.phash(image))


def test_blank_pictures_have_one_hash() -> None:
    greys = {perceptual_hash(Image.new("RGB", (97, 41), (level,) * 3)).tobytes() for level in (1, 77, 200, 255)}
    assert len(greys) == 1


@pytest.fixture
def others(tmp_path: Path) -> list[Path]:
    """Two photographs of one size, as PNG."""
    paths = [tmp_path / f"other{number}.png" for number in (0, 1)]
    for path, photo in zip(paths, PHOTOS, strict=False):
        Image.open(photo).convert("RGB").resize((320, 240)).save(path)
    return paths


def test_copies_are_found_whatever_their_files_are(others: list[Path], tmp_path: Path) -> None:
    first, second = (Image.open(path) for path in others)
    first.save(tmp_path / "same.bmp")
    second.save(tmp_path / "near.jpg", quality=92)
    first.resize((160, 120)).save(tmp_path / "small.png")
    Image.open(PHOTOS[2]).convert("RGB").resize((320, 240)).save(tmp_path / "new.png")
    mine = [tmp_path / name for name in ("same.bmp", "near.jpg", "small.png", "new.png")]
    distance = imagehash.phash(second) - imagehash.phash(Image.open(tmp_path / "near.jpg"))
    assert distance <= NEAR
    found = overlap(mine, others)
    assert (found.same, found.near) == ({mine[0]: others[0]}, {mine[1]: others[1]})
    assert found.remark is not None
    assert found.remark.startswith(
        f"pictures that are nearly the same on both sides: 1, such as {mine[1]} and {others[1]}"
    )


def test_sets_without_a_common_picture(others: list[Path]) -> None:
    assert overlap(others[:1], others[1:]).remark is None
    assert overlap([], others).same == overlap(others, []).same == {}
