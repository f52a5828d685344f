"""LLaVA-1.5's square: the picture is padded to a square with the mean colour, then resized (arXiv 2310.03744).

transformers' `CLIPImageProcessor`, which published checkpoints name, cuts the middle out instead and loses every object
near the ends of the longer side; the model was trained on whole pictures (`image_aspect_ratio: pad`) and says boxes in
0-1 of the padded square. `LlavaImageProcessor` with `do_pad` does what is done here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Preprocessing, check_rgb, check_sizes
from edgetune_runtime.images.config import Normalise, Settings


@dataclass(frozen=True)
class PaddedSquare(Preprocessing):
    """One checkpoint's square.

    Attributes:
        side: of the model's input, in pixels.
        patch: pixels per side of a vision patch, which is one image token.
        resample: Pillow's filter.
        normalise: rescaling and normalisation; the padding has its mean colour.
        crops: the checkpoint's file whose settings would cut pictures, or None.
    """

    side: int
    patch: int
    resample: Image.Resampling
    normalise: Normalise
    crops: Path | None = field(default=None, repr=False)  # of the checkpoint, not of the rule

    rule: ClassVar[str] = "pad_square"

    def __post_init__(self) -> None:
        check_sizes(self, "side", "patch")

    @classmethod
    def from_checkpoint(cls, folder: Path) -> PaddedSquare:
        """Read the rule of a Hugging Face checkpoint.

        Raises:
            InputError: a setting is missing, the settings contradict each other, or the model does not take every
                patch's feature as one token.
        """
        settings = Settings.read(folder, ("CLIPImageProcessor", "LlavaImageProcessor"))
        side = settings.side()
        cut = settings.config.get("do_center_crop") is not False
        if cut and any(settings.whole("crop_size", edge) != side for edge in ("height", "width")):
            raise InputError(f"{settings.path}: crop_size is not the {side}x{side} pixels of size")
        strategy = settings.need_model("vision_feature_select_strategy")
        if strategy != "default":
            raise InputError(f"{settings.model_path}: vision_feature_select_strategy is {strategy!r}, not 'default'")
        pads = settings.config.get("do_pad") is True
        crops = settings.path if cut and not pads else None
        return cls(side, settings.patch(), settings.resample(), settings.normalise(), crops)

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token, in the resized square."""
        return self.patch

    @property
    def most_tokens(self) -> int:
        """Image tokens of a picture, whatever its size."""
        return (self.side // self.patch) ** 2

    @property
    def remark(self) -> str | None:
        """Tells of a checkpoint whose own settings cut pictures: other tools will lose boxes with it."""
        if self.crops is None:
            return None
        return (
            f"{self.crops} asks for a centre crop, which loses what lies near the ends; pictures are padded to a "
            'square instead, as the model was trained. Other tools do that with "image_processor_type": '
            '"LlavaImageProcessor", "do_pad": true'
        )

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the picture's own size inside the resized square, and one token for each patch of the square."""
        scale = self.side / max(width, height)
        inside = Geometry(width, height, max(1, round(width * scale)), max(1, round(height * scale)))
        return ImagePlan(inside, (self.most_tokens,))

    @property
    def scaling(self) -> Normalise:
        """The rule's own."""
        return self.normalise

    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return pixel_values float32, or raw uint8, [1, 3, side, side]."""
        check_rgb(image)
        longest = max(image.size)
        square = Image.new("RGB", (longest, longest), self.normalise.background)
        # Whole pixels, the smaller half first: so do the original code and the codec.
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return {"pixel_values": self.normalise([square.resize((self.side, self.side), self.resample)], raw=raw)}
