"""Pictures that are loaded at the size that the model sees, JPEG files decoded smaller before."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import load_enough, load_image
from edgetune_runtime.images.smart import ImageSpec

SPEC = ImageSpec(
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    min_pixels=4096,
    max_pixels=65536,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    rescale=1 / 255,
    resample=3,
)


def picture(width: int, height: int) -> Image.Image:
    """A picture with detail at two scales."""
    generator, layers = np.random.default_rng(width), np.zeros((height, width, 3))
    for cells in (5, 40):
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        layers += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((layers / 2).astype(np.uint8))


def file(image: Image.Image, form: str = "JPEG", turn: int = 1) -> bytes:
    """It as a file, with an EXIF orientation."""
    held, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    image.save(held, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    return held.getvalue()


def whole(source: bytes) -> Image.Image:
    """Decoded whole, then resized as the model wants it."""
    image = load_image(source)
    plan = SPEC.plan(*image.size).geometry
    return image.resize((plan.resized_width, plan.resized_height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("size", [(1024, 1024), (1999, 1501), (640, 3000), (401, 300)])
def test_a_jpeg_file_is_nearly_what_it_is_when_decoded_whole(size: tuple[int, int], turn: int) -> None:
    source = file(picture(*size), turn=turn)
    image, own = SPEC.draft(source)
    assert own == load_image(source).size == (size if turn == 1 else size[::-1])
    expected = whole(source)
    assert image.size == expected.size
    apart = np.abs(np.asarray(image, float) - np.asarray(expected, float))
    assert apart.mean() < 2
    # What the model is given has the shape of the picture that was decoded whole.
    ours, theirs = SPEC.arrays(image, raw=True), SPEC.arrays(load_image(source), raw=True)
    assert np.array_equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert ours["pixel_values"].shape == theirs["pixel_values"].shape


@pytest.mark.parametrize(("size", "shrunk"), [((1024, 1024), 2), ((3200, 2400), 4), ((6000, 6000), 8), ((380, 380), 1)])
def test_no_more_is_left_out_than_the_model_can_spare(size: tuple[int, int], shrunk: int) -> None:
    """Sides are whole, or a half, a quarter or an eighth, and at least one and a half times those of the model."""
    seen = SPEC.plan(*size).geometry
    least = 1.5 * seen.resized_width, 1.5 * seen.resized_height
    decoded, own = load_enough(file(picture(*size)), lambda *_: (round(least[0]), round(least[1])))
    assert own == size
    assert decoded.size == (size[0] // shrunk, size[1] // shrunk)


@pytest.mark.parametrize("form", ["PNG", "BMP", "array", "Pillow", "small JPEG"])
def test_other_pictures_are_what_they_are_without(form: str) -> None:
    image = picture(340, 300)
    if form in ("array", "Pillow"):
        loaded, own = SPEC.draft(np.asarray(image) if form == "array" else image)
        expected = whole(file(image, "PNG"))
    else:
        source = file(image, "JPEG" if form == "small JPEG" else form)
        loaded, own = SPEC.draft(source)
        expected = whole(source)
    assert own == (340, 300)
    np.testing.assert_array_equal(loaded, expected)


def test_a_picture_that_would_be_resized_twice_stays_whole() -> None:
    source = file(picture(4000, 40))
    image, own = SPEC.draft(source)
    assert image.size == own == (4000, 40)
    np.testing.assert_array_equal(image, load_image(source))


def test_what_no_model_takes_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="aspect ratio 250"):
        SPEC.draft(file(picture(2500, 10)))
    broken = file(picture(1024, 1024))[:5000]
    with pytest.raises(ImageError, match="broken or truncated image"):
        SPEC.draft(broken)
