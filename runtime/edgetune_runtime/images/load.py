"""Reading pictures from files, bytes and arrays into upright 8-bit RGB."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import struct
import threading
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from edgetune_runtime.errors import ImageError, shortened


class SupportsArray(Protocol):
    """An array, or what numpy can read as one: tensors of torch on the CPU, of jax, and others."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return the pixels."""


MAX_IMAGE_PIXELS = 89_478_485
"""Default limit on width x height, Pillow's own: a quarter of a gigabyte as RGB."""

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | SupportsArray
"""What `load_image` takes; see there."""

_LIMIT_LOCK = threading.Lock()
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path has lost one of the two slashes


def load_image(source: ImageSource, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Return a picture as the model should see it: EXIF orientation applied, 8-bit RGB.

    Transparency is laid over white, as transformers' processors do. 16-bit and 32-bit grayscale is
    clipped to 8 bits, also as they do, with a warning when that loses something.

    Args:
        source: a path, the bytes of an image file or a binary file object of one (such as `io.BytesIO`), a data URI
            ("data:image/png;base64,..."), a Pillow image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] (RGB) or
            [H, W, 4] (RGBA), also as a tensor that numpy can read. OpenCV's frames are BGR: give `frame[..., ::-1]`.
        max_image_pixels: refuse pictures and arrays with more pixels than this before decoding them.

    Raises:
        ImageError: no such file, not an image, truncated, empty, too many pixels, float pixels, or none of these forms.
    """
    return load_enough(source, None, max_image_pixels=max_image_pixels)[0]


def load_enough(
    source: ImageSource,
    enough: Callable[[int, int], tuple[int, int]] | None,
    *,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> tuple[Image.Image, tuple[int, int]]:
    """Return a picture as `load_image` does, a JPEG file no larger than is needed, and its own width and height.

    The decoder of JPEG makes a half, a quarter or an eighth of each side at once ("draft mode"), in less time. Other
    pictures stay what they are.

    Args:
        source: as of `load_image`.
        enough: told the upright picture's own width and height, returns those (pixels) that the sides may not fall
            below; None decodes the whole picture.
        max_image_pixels: as of `load_image`.

    Raises:
        ImageError: as `load_image`, or from `enough`.
    """
    if not isinstance(source, Image.Image) and hasattr(source, "__array__"):
        array = _from_array(cast(SupportsArray, source), max_image_pixels)
        return array, array.size
    source = _resolved(source)
    name = str(source) if isinstance(source, Path) else "image"
    image = source if isinstance(source, Image.Image) else _open(source, name, max_image_pixels)
    try:
        _check_size(image, name, max_image_pixels)
        own = None if enough is None or image is source else _draft(image, enough)
        image.load()
        if image is source:
            rgb = _to_rgb(ImageOps.exif_transpose(image), name)
        else:
            ImageOps.exif_transpose(image, in_place=True)  # nobody else has it, so it need not be copied
            rgb = _to_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        raise ImageError(f"{name}: broken or truncated image: {error}", hint="replace the file") from error
    finally:
        if image is not source:
            image.close()
    return rgb, own or rgb.size


def _draft(image: Image.Image, enough: Callable[[int, int], tuple[int, int]]) -> tuple[int, int] | None:
    """Let a JPEG file that was opened be decoded smaller; returns its own upright size, None for other formats."""
    if image.format != "JPEG":
        return None
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
    own = (image.height, image.width) if turned else image.size
    width, height = enough(*own)
    image.draft(image.mode, (height, width) if turned else (width, height))
    return own


def _resolved(source: Any) -> Path | bytes | Image.Image:
    """Return the path, bytes or picture that a source stands for.

    Raises:
        ImageError: it is none that is known, or cannot be read.
    """
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _from_data_uri(source)
    if isinstance(source, str | os.PathLike):
        return Path(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Image.Image):
        return source
    if callable(getattr(source, "read", None)):
        try:
            content = source.read()
        except (OSError, ValueError) as error:  # closed, or not open for reading
            raise ImageError(f"image: the file object cannot be read: {error}") from error
        if isinstance(content, bytes):
            return content
        raise ImageError("image: the file object gives text, not bytes", hint='open the file with mode "rb"')
    kind = "None, which cameras and OpenCV give when they have no picture" if source is None else type(source).__name__
    raise ImageError(
        f"not an image: {kind}",
        hint="give a path, bytes, a file object, a data URI, a Pillow image or a uint8 RGB array [H, W, 3]",
    )


def _from_data_uri(text: str) -> bytes:
    """Return the bytes of a base64 data URI (RFC 2397)."""
    head, comma, body = text.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(f"image: a data URI must be data:image/...;base64,..., got {text[:40]!r}")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"image: the data URI is not valid base64: {error}") from error


def upright_size(path: Path, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Return the (width, height) in pixels after EXIF orientation, from the file's header only.

    Raises:
        ImageError: no such file, not an image, empty, too many pixels.
    """
    width, height, turn = read_header(path, max_image_pixels=max_image_pixels)
    return (height, width) if turn >= 5 else (width, height)


def read_header(path: Path, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int, int]:
    """Return a picture's stored width and height in pixels, and its EXIF orientation: 1 to 8, from 5 on it lies.

    Raises:
        ImageError: as `upright_size`.
    """
    with _open(path, str(path), max_image_pixels) as image:
        _check_size(image, str(path), max_image_pixels)
        try:
            # A PNG's own getexif() decodes the picture, to see what comes after it; only few have anything there.
            header_only = image.format == "PNG" and not _png_has_trailer(path)
            exif = Image.Image.getexif(image) if header_only else image.getexif()
            turn = exif.get(ExifTags.Base.Orientation, 1)
        except Exception as error:  # as above
            raise ImageError(f"{path}: broken EXIF data: {error}", hint="replace the file") from error
        turn = turn if turn in range(1, 9) else 1
        width, height = image.size
        if image.format == "TIFF" and turn >= 5:  # Pillow tells its size as it will be upright
            width, height = height, width
        return width, height, turn


def changed_at(path: Path) -> int:
    """Return when a file was changed, in nanoseconds, 0 where there is none: part of a key for what is kept of it."""
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return 0


def _open(source: Path | bytes, name: str, max_image_pixels: int) -> Image.Image:
    if not isinstance(source, bytes):
        shown = shortened(name, 300)
        try:
            found = source.is_file()
        except OSError as error:  # such as a name of more than 255 characters
            raise ImageError(f"{shown}: cannot be read: {error.strerror}") from error
        except ValueError:  # a NUL byte, before Python 3.13
            found = False
        if not found and source.is_dir():
            raise ImageError(f"{shown}: is a folder")
        if not found and source.exists():
            raise ImageError(f"{shown}: is a device, a pipe or a socket", hint="save a picture of it as a file first")
        if not found:
            raise ImageError(f"{shown}: no such image file", hint=_why_missing(source))
    try:
        return _open_any_size(source, max_image_pixels)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image, or in a format that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: over the limit of {max_image_pixels} pixels: {error}") from error
    except Exception as error:  # as above
        raise ImageError(f"{name}: cannot be read: {error}") from error


def _why_missing(path: Path) -> str | None:
    """Return what is wrong with the name of a picture that is not there, where it shows."""
    name = str(path)
    if _ADDRESS.match(name):
        return "addresses are not fetched here: download the picture first"
    if "~" in path.parts:
        return "'~' is not expanded in data files: write the whole path"
    if "\\" in name:
        return "the path has backslashes: write it with / (a path of another machine needs an image root of this one)"
    if path.parent.is_dir():
        alike = unicodedata.normalize("NFC", path.name).casefold()
        for other in path.parent.iterdir():
            if unicodedata.normalize("NFC", other.name).casefold() == alike:
                how = (
                    "in capital or small letters"
                    if other.name.casefold() == path.name.casefold()
                    else "in Unicode form"
                )
                return f"there is {other.name!r}, whose name differs {how}"
    return None


def _open_any_size(source: Path | bytes, max_image_pixels: int) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    ceiling = Image.MAX_IMAGE_PIXELS
    if ceiling is None or max_image_pixels <= ceiling:
        with warnings.catch_warnings():
            # Between one and two times its limit Pillow warns; `_check_size` refuses with our own message.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(stream)
    # The caller asked for more than Pillow allows. Opening reads the header only, `_check_size` comes next.
    with _LIMIT_LOCK:
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(stream)
        finally:
            Image.MAX_IMAGE_PIXELS = ceiling


def _png_has_trailer(path: Path) -> bool:
    """Return whether a PNG has a chunk, such as eXIf or a text, between its last data chunk and its end."""
    with path.open("rb") as stream:
        stream.seek(8)  # the signature
        seen_data = False
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if seen_data and kind not in (b"IDAT", b"IEND"):
                return True
            seen_data |= kind == b"IDAT"
            stream.seek(length + 4, io.SEEK_CUR)  # the body and its checksum
    return False


def _check_size(image: Image.Image, name: str, max_image_pixels: int) -> None:
    check_pixels(image.width, image.height, name, max_image_pixels)


def check_pixels(width: int, height: int, name: str, max_image_pixels: int = MAX_IMAGE_PIXELS) -> None:
    """Refuse a size that no picture may have.

    Raises:
        ImageError: a side is below 1, or width x height is over the limit.
    """
    if min(width, height) < 1:
        raise ImageError(f"{name}: the image is empty: {width}x{height} pixels")
    if width * height > max_image_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height} pixels, over the limit of {max_image_pixels}",
            hint="make the image smaller, or raise max_image_pixels if you trust it",
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name}: float pixels have no fixed range", hint="convert the image to 8 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 255:
            warnings.warn(
                f"{name}: values from {low:.0f} to {high:.0f} are clipped to 0-255, as transformers does; "
                "convert the image to 8 bits per channel to choose the range yourself",
                stacklevel=3,
            )
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_array(source: SupportsArray, max_image_pixels: int) -> Image.Image:
    try:
        array = np.asarray(source)
    except Exception as error:  # whatever that class raises: it may be a tensor on a GPU, or one that needs gradients
        raise ImageError(f"image: numpy cannot read the {type(source).__name__}: {error}") from error
    if array.dtype != np.uint8:
        raise ImageError(
            f"image arrays must be uint8, got {array.dtype}", hint="scale the values to 0-255 and convert them to uint8"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise ImageError(
            f"image arrays must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}",
            hint="move the channels to the end: array.transpose(1, 2, 0)" if first else None,
        )
    height, width = array.shape[:2]
    check_pixels(width, height, "image", max_image_pixels)
    return _to_rgb(Image.fromarray(array), "image")


def image_hash(image: Image.Image) -> str:
    """Return the sha256 of an image's mode, size and pixels: equal pictures hash equal, whatever their file."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
