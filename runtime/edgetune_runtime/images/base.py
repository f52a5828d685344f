"""What every preprocessing rule gives: sizes and placeholders from a picture's size, arrays from its pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.images.config import Normalise

Arrays = dict[str, npt.NDArray[Any]]
"""The image part of a transformers model's keyword arguments, by name."""

Pieces = tuple[str | int, ...]
"""What stands for one image in a prompt: texts as they are written, and numbers of image tokens."""


@dataclass(frozen=True)
class ImagePlan:
    """What is known of an image from its size alone.

    Attributes:
        geometry: the image as it is, and its own content as the model sees it (padding not counted), in pixels.
        pieces: what takes the image's place between the chat's `before_image` and `after_image`.
    """

    geometry: Geometry
    pieces: Pieces

    @property
    def image_tokens(self) -> int:
        """How many image tokens the pieces hold."""
        return sum(piece for piece in self.pieces if isinstance(piece, int))


class Preprocessing(ABC):
    """A checkpoint's image preprocessing, equal to that of transformers' processor of its family (PIL backend).

    A rule is a frozen dataclass; what its fields are is what a bundle says of it.

    Attributes:
        rule: the rule's name in bundles and among the facts of families.
        typed_tokens: whether the model is also told which tokens are image tokens (mm_token_type_ids).
        by_pixel: whether a flat patch holds one pixel's channels after the other's, in place of one channel after the
            other.
    """

    rule: ClassVar[str]
    typed_tokens: ClassVar[bool] = False
    by_pixel: ClassVar[bool] = False

    @property
    @abstractmethod
    def token_pixels(self) -> int:
        """Pixels per side of one image token, in the picture that the model sees."""

    @property
    @abstractmethod
    def most_tokens(self) -> int:
        """Image tokens of one picture, at most."""

    @property
    def patch_values(self) -> int | None:
        """Values of one row of `pixel_values` where rows are flat patches, else None."""
        return None

    @property
    def frames(self) -> int:
        """How often a flat patch holds the picture: towers for films see it as so many equal frames."""
        return 1

    @property
    @abstractmethod
    def scaling(self) -> Normalise:
        """How 8-bit values become the model's."""

    @property
    def remark(self) -> str | None:
        """What a user should know where the checkpoint's own files ask for something else than is done; or None."""
        return None

    @abstractmethod
    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the plan of an upright image of this size (pixels).

        Raises:
            ImageError: the model does not take such a size.
        """

    @abstractmethod
    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return the model's arrays for one image from `load_image`; each row of axis 0 belongs to it.

        Args:
            image: upright, 8-bit RGB.
            raw: give pixel_values as uint8, neither rescaled nor normalised, for encoders that do the rest
                (`ModelShape.raw_pixels`). Flat patches then hold one frame, pixel by pixel; tiles have their shape.

        Raises:
            ImageError: the image is not 8-bit RGB, or its size is refused.
        """

    def join(self, parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Arrays:
        """Return the arrays of several images, in the order of their tokens, as the model takes them."""
        return {name: in_turn(parts, name) for name in parts[0]}

    def encoder_arrays(self, parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Arrays:
        """Return what an exported vision encoder takes of several images: tiles or patches one after the other.

        Args:
            parts: the `arrays` of each image.
        """
        return {name: in_turn(parts, name) for name in parts[0]}

    def to_dict(self) -> dict[str, Any]:
        """Return the rule's name and its fields as JSON values, which `rules.rule_from_dict` reads."""
        return {"rule": self.rule, **_plain(self)}


def in_turn(parts: Sequence[Mapping[str, npt.NDArray[Any]]], name: str) -> npt.NDArray[Any]:
    """Return one of several images' arrays along axis 0; that of a single image, which is large, is not copied."""
    return parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts])


def _plain(value: Any) -> Any:
    """Return a field of a rule as a JSON value."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, Image.Resampling) else value


def check_sizes(rule: object, *names: str) -> None:
    """Refuse fields of a rule that are no sizes, which are whole numbers from 1 to 2^31.

    Raises:
        InputError: the first that is not; the message begins with its name.
    """
    for name in names:
        value = getattr(rule, name)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise InputError(f"{name} must be a positive whole number, got {value!r}")


def check_rgb(image: Image.Image) -> None:
    """Refuse what did not come from `load_image`.

    Raises:
        ImageError: the image is not 8-bit RGB.
    """
    if image.mode != "RGB":
        raise ImageError(f"expected an RGB image, got mode {image.mode!r}", hint="pass it through load_image first")
