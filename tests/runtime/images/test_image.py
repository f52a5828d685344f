"""Preprocessing against transformers' own processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import image_hash, load_image
from edgetune_runtime.images.smart import ImageSpec, geometry_of, preprocess, smart_resize

sides = st.one_of(st.integers(1, 300), st.integers(1, 9000))


@given(
    height=sides, width=sides, factor=st.sampled_from([28, 32]), low=st.integers(1, 200), high=st.integers(200, 16000)
)
def test_smart_resize_equals_transformers(height: int, width: int, factor: int, low: int, high: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    limits = {"min_pixels": low * factor**2, "max_pixels": high * factor**2}
    expected = reference_resize(height, width, factor=factor, **limits)
    assert smart_resize(height, width, factor=factor, **limits) == expected


@pytest.mark.parametrize(("side", "rounded"), [(14, 28), (42, 56), (70, 56), (98, 112)])
def test_halves_round_to_even_multiples(side: int, rounded: int) -> None:
    # 0.5, 1.5, 2.5 and 3.5 factors: to 0 (then raised to the minimum), 2, 2 and 4.
    assert smart_resize(side, 280, factor=28, min_pixels=28 * 280, max_pixels=10**9)[0] == rounded


def test_smart_resize_refuses_what_transformers_refuses() -> None:
    limits = {"factor": 28, "min_pixels": 3136, "max_pixels": 10**6}
    assert smart_resize(10, 2000, **limits)
    with pytest.raises(ImageError, match=r"aspect ratio 200\.1"):
        smart_resize(10, 2001, **limits)
    with pytest.raises(ImageError, match="empty"):
        smart_resize(0, 10, **limits)


def picture(mode: str, width: int, height: int) -> Image.Image:
    """Make a random picture of a Pillow mode; alpha included where the mode has it."""
    generator = np.random.default_rng([width, height])
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 256, (height, width)).astype(np.uint16))
    rgba = Image.fromarray(generator.integers(0, 256, (height, width, 4)).astype(np.uint8), "RGBA")
    if mode == "P with transparency":
        image = rgba.convert("RGB").convert("P")
        image.info["transparency"] = 7
        return image
    return rgba if mode == "RGBA" else rgba.convert("LA" if mode == "LA" else "RGB").convert(mode)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("mode", "width", "height"),
    [
        ("RGB", 71, 993),
        ("RGB", 1920, 1080),
        ("RGB", 3000, 200),
        ("RGB", 17, 9),
        ("L", 301, 203),
        ("P", 301, 203),
        ("P with transparency", 301, 203),
        ("RGBA", 301, 203),
        ("LA", 301, 203),
        ("I;16", 301, 203),
        ("CMYK", 301, 203),
        ("1", 301, 203),
        ("YCbCr", 301, 203),
    ],
)
def test_pixels_are_bit_identical_to_transformers(
    family: str, mode: str, width: int, height: int, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(family)
    image = picture(mode, width, height)
    processor = AutoImageProcessor.from_pretrained(folder)
    expected = processor(images=image, return_tensors="np")

    pixels = preprocess(load_image(image), ImageSpec.from_checkpoint(folder))

    np.testing.assert_array_equal(pixels.pixel_values, expected["pixel_values"])
    np.testing.assert_array_equal(pixels.grid_thw, expected["image_grid_thw"])
    assert pixels.pixel_values.dtype == np.float32 and pixels.grid_thw.dtype == np.int64
    assert pixels.image_tokens == expected["image_grid_thw"].prod() // 4
    patch = ImageSpec.from_checkpoint(folder).patch_size
    _, rows, columns = expected["image_grid_thw"][0]
    assert pixels.geometry == Geometry(width, height, int(columns) * patch, int(rows) * patch)


def test_preprocess_wants_an_rgb_image(qwen3_vl: Path) -> None:
    with pytest.raises(ImageError, match="expected an RGB image, got mode 'L'"):
        preprocess(Image.new("L", (64, 64)), ImageSpec.from_checkpoint(qwen3_vl))


def test_preprocess_refuses_long_images(qwen3_vl: Path) -> None:
    with pytest.raises(ImageError, match="aspect ratio"):
        preprocess(Image.new("RGB", (2010, 10)), ImageSpec.from_checkpoint(qwen3_vl))


def test_geometry_follows_the_checkpoints_limits(qwen3_vl: Path) -> None:
    spec = ImageSpec.from_checkpoint(qwen3_vl)
    geometry = geometry_of(1920, 1080, spec)
    assert (geometry.resized_height, geometry.resized_width) == reference_resize(1080, 1920, 32, 64 * 64, 256 * 256)


def test_equal_pictures_hash_equal(tmp_path: Path) -> None:
    image = picture("RGB", 20, 10)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    assert image_hash(load_image(tmp_path / "a.png")) == image_hash(load_image(tmp_path / "b.bmp"))
    # The same bytes in another shape are another picture.
    assert image_hash(image) != image_hash(Image.frombytes("RGB", (10, 20), image.tobytes()))
