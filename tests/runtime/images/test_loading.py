"""Pictures from files, bytes and arrays; what is upright, what is transparent, what is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import load_image, upright_size

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size and whose data is a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)

    image = load_image(path)

    reference = pytest.importorskip("transformers.image_utils")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(reference.load_image(str(path))))
    assert upright_size(path) == image.size
    assert image.size == ((6, 9) if orientation >= 5 else (9, 6))


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "png", exif=exif)
    content = stream.getvalue()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    path = tmp_path / "late.png"  # the same file with the chunk moved to where some tools put it
    path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    assert upright_size(path) == load_image(path).size == (6, 9)


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    path = tmp_path / "picture.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image, PIXELS):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(loaded), PIXELS)


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = 0, 51, 255
    expected = [[255, 255, 255], [244, 204, 204], [200, 0, 0]]  # 51 / 255 is one fifth
    np.testing.assert_array_equal(np.asarray(load_image(rgba))[0], expected)
    np.testing.assert_array_equal(np.asarray(load_image(Image.fromarray(rgba)))[0], expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_gray_arrays(shape: tuple[int, ...]) -> None:
    gray = np.arange(20, dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(np.asarray(load_image(gray)), np.repeat(gray.reshape(4, 5, 1), 3, axis=2))


def test_wide_gray_is_clipped_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    Image.fromarray(np.array([[0, 255, 256, 60000]], np.uint16)).save(path)
    with pytest.warns(UserWarning, match="values from 0 to 60000 are clipped to 0-255"):
        image = load_image(path)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 255, 255, 255]


def test_wide_gray_that_fits_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(Image.fromarray(np.array([[0, 100, 255]], np.uint16)))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 255]


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))
    for suffix in ("png", "jpg", "webp", "bmp"):
        whole = io.BytesIO()
        noise.save(whole, format={"jpg": "jpeg"}.get(suffix, suffix))
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        with pytest.raises(ImageError, match=rf"cut\.{suffix}: (broken or truncated|cannot be read|not an image)"):
            load_image(path)


def test_decompression_bomb_is_refused_before_decoding() -> None:
    for width in (10_000, 20_000):  # Pillow warns at the first and refuses the second
        with pytest.raises(ImageError, match="over the limit of 89478485"):
            load_image(png_of_size(width, 10_000))


def test_the_limit_is_configurable(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="54 pixels, over the limit of 53") as caught:
        load_image(PIXELS_PNG, max_image_pixels=53)
    assert caught.value.hint and "max_image_pixels" in caught.value.hint
    assert load_image(PIXELS_PNG, max_image_pixels=54).size == (9, 6)
    path = tmp_path / "large.png"
    path.write_bytes(png_of_size(20_000, 10_000))
    assert upright_size(path, max_image_pixels=10**9) == (20_000, 10_000)
    with pytest.raises(ImageError, match="broken or truncated"):  # it passes the limit and then has no data
        load_image(path.read_bytes(), max_image_pixels=10**9)


def _png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "png")
    return stream.getvalue()


PIXELS_PNG = _png()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not an image"), (b"plain text", "not an image"), (PIXELS_PNG[:20], "not an image|cannot be read")],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for load in (load_image, upright_size):
        with pytest.raises(ImageError, match=message):
            load(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such image file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="is a device, a pipe or a socket"):
        load_image("/dev/null")
    for address in ("rtsp://127.0.0.1/cam", "HTTP://example.org/x.jpg"):
        with pytest.raises(ImageError, match="no such image file") as caught:
            load_image(address)
        assert caught.value.hint == "addresses are not fetched here: download the picture first"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty: 5x0"),
        (np.zeros((5, 5, 2), np.uint8), r"got \[5, 5, 2\]"),
        (np.zeros((5,), np.uint8), r"got \[5\]"),
        (np.zeros((5, 5, 3), np.float32), "must be uint8, got float32"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array)


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="float pixels"):
        load_image(Image.new("F", (4, 4)))
