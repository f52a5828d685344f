"""Qwen-VL's smart resize, exactly as transformers does it.

That is transformers' `Qwen2VLImageProcessor` (Qwen2-VL, Qwen2.5-VL and Qwen3-VL share it) with its PIL backend, bit for
bit: `smart_resize`, Pillow's bicubic resize on 8-bit RGB, rescale, normalise, patches in merge order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.errors import ImageError
from edgetune_runtime.geometry import Geometry
from edgetune_runtime.preprocessing.base import check_rgb
from edgetune_runtime.preprocessing.config import Normalise

if TYPE_CHECKING:
    from edgetune_runtime.image_spec import ImageSpec

MAX_ASPECT = 200


@dataclass(frozen=True)
class Pixels:
    """One image as the vision encoder reads it.

    Attributes:
        pixel_values: float32 [grid_h * grid_w, 3 * temporal * patch * patch], normalised; rows go by merge
            group (row-major), then by patch inside the group.
        grid_thw: int64 [1, 3], patches in time (1), height and width.
        geometry: original and resized size in pixels.
        image_tokens: how many tokens the image takes in the prompt.
    """

    pixel_values: npt.NDArray[np.float32]
    grid_thw: npt.NDArray[np.int64]
    geometry: Geometry
    image_tokens: int


def check_aspect(width: int, height: int) -> None:
    """Refuse sizes (pixels) that no smart-resize model accepts.

    Raises:
        ImageError: a side is zero, or one side is over 200 times the other.
    """
    if min(width, height) < 1:
        raise ImageError(f"the image is empty: {width}x{height} pixels")
    if max(width, height) / min(width, height) > MAX_ASPECT:
        raise ImageError(
            f"aspect ratio {max(width, height) / min(width, height):.1f} of the {width}x{height} image is over "
            f"{MAX_ASPECT}, which the model does not accept",
            hint="crop or pad the image",
        )


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the (height, width) in pixels that a Qwen-VL model sees.

    Both become multiples of `factor` (patch size times merge size), the area lands between the limits,
    and the aspect ratio is kept as well as that allows. Equal to transformers' function of the same
    name; rounding is half to even.

    Raises:
        ImageError: the image is empty, its aspect ratio is over 200, or nothing is left of a side.
    """
    check_aspect(width, height)
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    if min(new_height, new_width) < 1:
        raise ImageError(f"a {width}x{height} image is too small for a factor of {factor} with min_pixels {min_pixels}")
    return new_height, new_width


def geometry_of(width: int, height: int, spec: ImageSpec) -> Geometry:
    """Return the geometry of an upright image of this size (pixels) under a checkpoint's resize rule."""
    resized_height, resized_width = smart_resize(
        height, width, factor=spec.factor, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels
    )
    return Geometry(width, height, resized_width, resized_height)


def preprocess(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Turn an image from `load_image` into the vision encoder's input.

    Raises:
        ImageError: the image is not 8-bit RGB, or its size is refused (see `smart_resize`).
    """
    check_rgb(image)
    geometry = geometry_of(image.width, image.height, spec)
    size = (geometry.resized_width, geometry.resized_height)
    rgb = np.asarray(image.resize(size, resample=Image.Resampling(spec.resample)))  # [H, W, 3] uint8

    patch, merge = spec.patch_size, spec.merge_size
    grid_h, grid_w = size[1] // patch, size[0] // patch
    groups = rgb.reshape(grid_h // merge, merge, patch, grid_w // merge, merge, patch, 3)
    patches = groups.transpose(0, 3, 1, 4, 6, 2, 5)  # [gh, gw, merge, merge, 3, patch, patch]

    table = Normalise(spec.mean, spec.std, spec.rescale).table()
    values = table[np.arange(3)[:, None, None], patches]  # [gh, gw, merge, merge, 3, patch, patch] float32
    # An image is a clip of one frame: the encoder's temporal patch sees it repeated.
    repeated = np.repeat(values[:, :, :, :, :, None], spec.temporal_patch_size, axis=5)
    pixel_values = np.ascontiguousarray(repeated.reshape(grid_h * grid_w, -1))
    return Pixels(
        pixel_values=cast("npt.NDArray[np.float32]", pixel_values),
        grid_thw=np.array([[1, grid_h, grid_w]], dtype=np.int64),
        geometry=geometry,
        image_tokens=grid_h * grid_w // merge**2,
    )
