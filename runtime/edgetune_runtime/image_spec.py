"""The image preprocessing of a checkpoint, read from the checkpoint itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.preprocessing.base import Arrays, Plan, Preprocessing
from edgetune_runtime.preprocessing.config import read_preprocessor
from edgetune_runtime.smart_resize import geometry_of, preprocess

# What transformers assumes when a config leaves these out; published configs often do.
_RESCALE = 1 / 255
_BICUBIC = 3


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
    typed_tokens: ClassVar[bool] = True  # their positions are multimodal (M-RoPE)

    def __post_init__(self) -> None:
        sizes = (self.patch_size, self.temporal_patch_size, self.merge_size, self.min_pixels, self.max_pixels)
        numbers = (*self.mean, *self.std, self.rescale)
        if not all(type(size) is int for size in (*sizes, self.resample)):
            raise InputError(f"image preprocessing needs whole numbers for sizes and the filter: {self}")
        if not all(isinstance(number, int | float) for number in numbers):
            raise InputError(f"image preprocessing needs numbers for mean, std and rescale: {self}")
        if min(sizes) < 1 or self.min_pixels > self.max_pixels:
            raise InputError(f"image preprocessing needs positive sizes and min_pixels <= max_pixels: {self}")
        if {len(channels) for channels in (self.mean, self.std)} != {3} or min(self.std) <= 0:
            raise InputError(f"image preprocessing needs three means and three positive stds: {self}")

    @property
    def factor(self) -> int:
        """Pixels per side of one image token; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token."""
        return self.factor

    def plan(self, width: int, height: int) -> Plan:
        """Return the resized size and its number of tokens."""
        geometry = geometry_of(width, height, self)
        return Plan(geometry, (geometry.resized_width * geometry.resized_height // self.factor**2,))

    def arrays(self, image: Image.Image) -> Arrays:
        """Return pixel_values float32 [patches, C·T·P·P] and image_grid_thw int64 [1, 3]."""
        pixels = preprocess(image, self)
        return {"pixel_values": pixels.pixel_values, "image_grid_thw": pixels.grid_thw}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ImageSpec:
        """Build a spec from `to_dict`'s result.

        Raises:
            InputError: a field is missing, unknown or of the wrong type.
        """
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"image preprocessing: wrong or missing field: {error}") from error

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
        kind = config.get("image_processor_type", "")
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
        fields = {
            "patch_size": config["patch_size"],
            "temporal_patch_size": config["temporal_patch_size"],
            "merge_size": config["merge_size"],
            "min_pixels": minimum,
            "max_pixels": maximum,
            "mean": config["image_mean"],
            "std": config["image_std"],
            "rescale": config.get("rescale_factor", _RESCALE),
            "resample": config.get("resample", _BICUBIC),
        }
        try:
            return cls.from_dict(fields)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
