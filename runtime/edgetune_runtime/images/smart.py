"""Qwen-VL's smart resize, exactly as transformers does it.

That is transformers' `Qwen2VLImageProcessor` (Qwen2-VL, Qwen2.5-VL and Qwen3-VL share it) with its PIL backend, bit for
bit: `smart_resize`, Pillow's bicubic resize on 8-bit RGB, rescale, normalise, patches in merge order.
The settings come from the checkpoint's own files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Preprocessing, check_rgb, check_sizes
from edgetune_runtime.images.config import Normalise, read_preprocessor
from edgetune_runtime.images.load import ImageSource, load_enough

# What transformers assumes when a config leaves these out; published configs often do.
_RESCALE = 1 / 255
_BICUBIC = 3

MAX_ASPECT = 200

DRAFT_MARGIN = 1.5
"""Sides of a picture that was decoded smaller, at least, in those that the model sees: the rest is resized, for what
JPEG's decoder makes smaller has no filter between its blocks."""


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

    @property
    def arrays(self) -> Arrays:
        """What the vision encoder takes, by name."""
        return {"pixel_values": self.pixel_values, "image_grid_thw": self.grid_thw}


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


@dataclass(frozen=True)
class ImageSpec(Preprocessing):
    """How images become pixel values by smart resize.

    Attributes:
        patch_size: pixels per side of a vision patch.
        temporal_patch_size: frames per patch.
        merge_size: patches per side that become one image token.
        min_pixels: smallest area of the resized image, in pixels.
        max_pixels: largest area of the resized image, in pixels.
        mean: per RGB channel, subtracted after rescaling.
        std: per RGB channel, divided by after that.
        rescale: factor on 8-bit values.
        resample: Pillow's resampling filter number (3 is bicubic).
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float
    resample: int
    rule: ClassVar[str] = "smart"
    typed_tokens: ClassVar[bool] = True  # their positions are multimodal (M-RoPE)

    def __post_init__(self) -> None:
        check_sizes(self, "patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
        if self.min_pixels > self.max_pixels:
            raise InputError(f"min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")
        if type(self.resample) is not int or self.resample not in set(Image.Resampling):
            raise InputError(f"resample {self.resample!r} is no filter of Pillow")
        _ = self.scaling  # checks them

    @property
    def factor(self) -> int:
        """Pixels per side of one image token; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token."""
        return self.factor

    @property
    def most_tokens(self) -> int:
        """Image tokens of one picture, at most."""
        return self.max_pixels // self.factor**2

    @property
    def frames(self) -> int:
        """How often a patch holds the picture."""
        return self.temporal_patch_size

    @property
    def scaling(self) -> Normalise:
        """How 8-bit values become the model's."""
        return Normalise(self.mean, self.std, self.rescale)

    @property
    def patch_values(self) -> int:
        """Channels, frames, rows and columns of one patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the resized size and its number of tokens."""
        geometry = geometry_of(width, height, self)
        return ImagePlan(geometry, (geometry.resized_width * geometry.resized_height // self.factor**2,))

    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return pixel_values float32 [patches, C·T·P·P], or raw uint8 [patches, P·P·C], and image_grid_thw [1, 3]."""
        if not raw:
            return preprocess(image, self).arrays
        patches, geometry = raw_patches(image, self)
        return {"pixel_values": patches, "image_grid_thw": _grid(geometry, self)}

    def draft(self, source: ImageSource) -> tuple[Image.Image, tuple[int, int]]:
        """Return a picture at the size that the model sees, and its own width and height.

        A large JPEG file is decoded smaller first (`load_enough`), which saves time; pixels are not those of a picture
        that was decoded whole. Very long pictures, which have no such size (it would be resized once more), stay whole.

        Raises:
            ImageError: as `load_image` and `smart_resize`.
        """

        def seen(width: int, height: int) -> tuple[int, int] | None:
            first = geometry_of(width, height, self)
            size = first.resized_width, first.resized_height
            again = geometry_of(*size, self)
            return size if size == (again.resized_width, again.resized_height) else None

        def enough(width: int, height: int) -> tuple[int, int]:
            size = seen(width, height)
            if size is None:
                return width, height
            return math.ceil(size[0] * DRAFT_MARGIN), math.ceil(size[1] * DRAFT_MARGIN)

        image, own = load_enough(source, enough)
        size = seen(*own)
        return image if size is None else _fitted(image, size, self), own

    def bounded(self, min_pixels: int | None = None, max_pixels: int | None = None) -> ImageSpec:
        """Return the rule with other limits of the resized image's area, in pixels; None keeps one.

        Raises:
            InputError: a limit is not positive, holds less than one image token, or they are the wrong way round.
        """
        smallest = self.min_pixels if min_pixels is None else min_pixels
        largest = self.max_pixels if max_pixels is None else max_pixels
        if type(largest) is int and 0 < largest < self.factor**2:
            raise InputError(
                f"max_pixels {largest} is less than one image token",
                hint=f"a token is {self.factor} x {self.factor} pixels: choose at least {self.factor**2}",
            )
        return replace(self, min_pixels=smallest, max_pixels=largest)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> ImageSpec:
        """Read the spec of a Hugging Face checkpoint, from its own files and never from class defaults.

        Both spellings of the limits are read: `min_pixels`/`max_pixels` (which win, as in transformers)
        and `size` with `shortest_edge`/`longest_edge`, which are areas in pixels despite their names.

        Raises:
            InputError: the preprocessor config is missing, incomplete, or asks for something else than
                the smart-resize preprocessing of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
        """
        path, config = read_preprocessor(folder)
        kind = str(config.get("image_processor_type") or "")
        if kind and not kind.startswith(("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor", "Qwen3VLImageProcessor")):
            raise InputError(f"{path}: image_processor_type {kind!r} is not the smart-resize preprocessing of Qwen-VL")
        for switch in ("do_resize", "do_rescale", "do_normalize"):
            if config.get(switch, True) is not True:
                raise InputError(f"{path}: {switch} is {config[switch]!r}; only true is supported")

        size = config.get("size") or {}
        if not isinstance(size, dict):
            raise InputError(f"{path}: 'size' must be an object with shortest_edge and longest_edge, got {size!r}")
        minimum = _first(config.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels"))
        maximum = _first(config.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels"))
        needed = {
            "patch_size": config.get("patch_size"),
            "temporal_patch_size": config.get("temporal_patch_size"),
            "merge_size": config.get("merge_size"),
            "min_pixels (or size.shortest_edge)": minimum,
            "max_pixels (or size.longest_edge)": maximum,
            "image_mean": config.get("image_mean"),
            "image_std": config.get("image_std"),
        }
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise InputError(f"{path}: missing {', '.join(missing)}", hint="copy the file of the published checkpoint")
        try:
            return cls(
                patch_size=config["patch_size"],
                temporal_patch_size=config["temporal_patch_size"],
                merge_size=config["merge_size"],
                min_pixels=minimum,
                max_pixels=maximum,
                mean=_channels(config["image_mean"]),
                std=_channels(config["image_std"]),
                rescale=config.get("rescale_factor", _RESCALE),
                resample=config.get("resample", _BICUBIC),
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _channels(value: Any) -> Any:
    """Return a list as a tuple, and anything else as one value, for the rule to refuse."""
    return tuple(value) if isinstance(value, list) else (value,)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def geometry_of(width: int, height: int, spec: ImageSpec) -> Geometry:
    """Return the geometry of an upright image of this size (pixels) under a checkpoint's resize rule."""
    resized_height, resized_width = smart_resize(
        height, width, factor=spec.factor, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels
    )
    return Geometry(width, height, resized_width, resized_height)


def _fitted(image: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    """Return a picture at a size, which may be its own."""
    return image if size == image.size else image.resize(size, Image.Resampling(spec.resample))


def raw_patches(image: Image.Image, spec: ImageSpec) -> tuple[npt.NDArray[np.uint8], Geometry]:
    """Cut an image from `load_image` into patches, and nothing else.

    Returns:
        uint8 [grid_h * grid_w, patch * patch * 3]: rows in the order of `Pixels.pixel_values`, and within one the
        patch's pixels row by row, the channels of each together. And the sizes.

    Raises:
        ImageError: the image is not 8-bit RGB, or its size is refused (see `smart_resize`).
    """
    check_rgb(image)
    geometry = geometry_of(image.width, image.height, spec)
    image = _fitted(image, (geometry.resized_width, geometry.resized_height), spec)
    patch, merge = spec.patch_size, spec.merge_size
    rows, columns = image.height // spec.factor, image.width // spec.factor
    # Rows of a patch's pixels lie in one piece before and after, so that this moves them as wholes.
    groups = np.asarray(image).reshape(rows, merge, patch, columns, merge, patch * 3)
    patches = groups.transpose(0, 3, 1, 4, 2, 5).reshape(rows * columns * merge**2, patch**2 * 3)
    return patches, geometry


def preprocess(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Turn an image from `load_image` into the vision encoder's input.

    Raises:
        ImageError: the image is not 8-bit RGB, or its size is refused (see `smart_resize`).
    """
    raw, geometry = raw_patches(image, spec)
    patches, table = raw.reshape(len(raw), -1, 3), spec.scaling.table()
    values = np.empty((len(raw), 3, spec.frames, patches.shape[1]), np.float32)
    for channel in range(3):
        # An image is a clip of one frame: the encoder's temporal patch sees it repeated.
        values[:, channel] = table[channel][patches[:, None, :, channel]]
    return Pixels(values.reshape(len(raw), -1), _grid(geometry, spec), geometry, len(raw) // spec.merge_size**2)


def _grid(geometry: Geometry, spec: ImageSpec) -> npt.NDArray[np.int64]:
    """Return the patches in time, height and width."""
    high, wide = geometry.resized_height // spec.patch_size, geometry.resized_width // spec.patch_size
    return np.array([[1, high, wide]], np.int64)
