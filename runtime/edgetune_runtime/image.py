"""Pictures: loading them, smart resize, and what identifies them."""

from __future__ import annotations

import hashlib

from PIL import Image

from edgetune_runtime.geometry import Geometry
from edgetune_runtime.image_spec import ImageSpec
from edgetune_runtime.loading import MAX_IMAGE_PIXELS, load_image, upright_size
from edgetune_runtime.smart_resize import MAX_ASPECT, Pixels, check_aspect, geometry_of, preprocess, smart_resize

__all__ = [
    "MAX_ASPECT",
    "MAX_IMAGE_PIXELS",
    "Geometry",
    "ImageSpec",
    "Pixels",
    "check_aspect",
    "geometry_of",
    "image_hash",
    "load_image",
    "preprocess",
    "smart_resize",
    "upright_size",
]


def image_hash(image: Image.Image) -> str:
    """Return the sha256 of an image's mode, size and pixels: equal pictures hash equal, whatever their file."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
