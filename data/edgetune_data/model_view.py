"""How a model sees pictures: what its family and its checkpoint say about sizes and control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family, family_of, get_family
from edgetune_runtime.images.base import ImagePlan, Preprocessing
from edgetune_runtime.images.rules import open_preprocessing
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json
from edgetune_runtime.tokens import TextTokenizer


@dataclass(frozen=True)
class ModelView:
    """What is known of the model that the data is for.

    Attributes:
        family: its family.
        spec: how it resizes pictures, or None where its pixel limits are not known.
        tokenizer: its tokenizer, or None without a checkpoint.
    """

    family: Family
    spec: Preprocessing | None
    tokenizer: TextTokenizer | None = None

    @classmethod
    def of_checkpoint(cls, folder: Path) -> ModelView:
        """Read a Hugging Face checkpoint's own files.

        Raises:
            InputError: a file is missing or broken, or the family is unknown.
            BundleError: tokenizer.json is missing or broken.
        """
        config = read_json(folder / "config.json")
        if "model_type" not in config:
            raise InputError(f"{folder / 'config.json'}: no 'model_type'", hint="give a Hugging Face checkpoint folder")
        tokenizer = TextTokenizer(folder / "tokenizer.json")
        family = family_of(config["model_type"], tokenizer.control)
        return cls(family, open_preprocessing(folder, family), tokenizer)

    @classmethod
    def of_family(cls, name: str, min_pixels: int | None, max_pixels: int | None) -> ModelView:
        """Take a family's facts and the pixel limits that the model will be run with.

        Raises:
            InputError: the family is unknown or does not resize by pixel limits, or one limit is missing.
        """
        family = get_family(name)
        if (min_pixels is None) != (max_pixels is None):
            raise InputError("--min-pixels and --max-pixels go together", hint="give both, or --checkpoint")
        if min_pixels is None or max_pixels is None:
            return cls(family, None)
        if family.resize != "smart":
            raise InputError(
                f"{family.title} does not resize by pixel limits", hint="give --checkpoint, which says how it does"
            )
        sizes = (family.patch_size, family.temporal_patch_size, family.merge_size, min_pixels, max_pixels)
        return cls(family, ImageSpec(*sizes, mean=(0.5,) * 3, std=(0.5,) * 3, rescale=1 / 255, resample=3))

    @property
    def control(self) -> tuple[str, ...]:
        """The texts of its control tokens: all of them from a tokenizer, else those that the family names."""
        if self.tokenizer is not None:
            return self.tokenizer.control
        named = (self.family.chat.end, *self.family.stop_tokens, *self.family.special_tokens.values())
        return tuple(dict.fromkeys(token.strip() for token in named if token.strip()))

    def to_dict(self) -> dict[str, Any]:
        """Return what is known as JSON values."""
        return {"family": self.family.name, "preprocessing": repr(self.spec), "control": list(self.control)}

    def sees(self, width: int, height: int) -> Geometry:
        """Return the geometry of an upright picture of this size in pixels.

        Raises:
            InputError: the pixel limits are not known.
            ImageError: the model does not take this size.
        """
        return self._plan(width, height).geometry

    def image_tokens(self, width: int, height: int) -> int:
        """Return how many image tokens an upright picture of this size in pixels takes.

        Raises:
            InputError: the pixel limits are not known.
            ImageError: the model does not take this size.
        """
        return self._plan(width, height).image_tokens

    def _plan(self, width: int, height: int) -> ImagePlan:
        if self.spec is None:
            raise InputError(f"the pixel limits of the {self.family.title} are not known")
        return self.spec.plan(width, height)

    def tokens_of(self, box: Sequence[float], width: int, height: int) -> float:
        """Return the area of a box (xyxy, pixels of an upright picture of this size) in image tokens.

        Raises:
            InputError, ImageError: as `sees`.
        """
        plan = self._plan(width, height)
        seen = plan.geometry
        assert self.spec is not None
        across, down = seen.resized_width / seen.width, seen.resized_height / seen.height
        return (box[2] - box[0]) * across * (box[3] - box[1]) * down / self.spec.token_pixels**2
