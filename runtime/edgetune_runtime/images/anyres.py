"""LLaVA-OneVision's any resolution: a stretched overview, and tiles of the picture padded onto the best of given sizes.

arXiv 2408.03326, section 3.2. The model drops the tokens of the padding, ends each row of tokens with one more
(`image_newline`) and shrinks grids of over `max_tiles` tiles; how many tokens that leaves is computed here as
transformers does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Preprocessing, check_rgb, check_sizes
from edgetune_runtime.images.config import Normalise, Settings

_SHRINK_OVER = 1.1
"""A grid is shrunk when its side is over this many times that of `max_tiles` tiles."""


@dataclass(frozen=True)
class AnyResolution(Preprocessing):
    """One checkpoint's tiles.

    Attributes:
        side: of a tile, in pixels.
        patch: pixels per side of a vision patch, which is one image token.
        canvases: the (height, width) in pixels that a picture may be padded to.
        max_tiles: tiles' worth of tokens that a picture may keep, the overview not counted.
        resample: Pillow's filter.
        normalise: rescaling and normalisation.
    """

    side: int
    patch: int
    canvases: tuple[tuple[int, int], ...]
    max_tiles: int
    resample: Image.Resampling
    normalise: Normalise

    rule: ClassVar[str] = "anyres"

    def __post_init__(self) -> None:
        check_sizes(self, "side", "patch", "max_tiles")
        if not self.canvases:
            raise InputError("canvases must hold at least one size")
        for canvas in self.canvases:
            edges: object = canvas
            if not isinstance(edges, tuple) or len(edges) != 2 or not all(map(self._whole_tiles, edges)):
                raise InputError(f"canvases must be (height, width) in whole tiles of {self.side}, got {canvas!r}")

    @classmethod
    def from_checkpoint(cls, folder: Path) -> AnyResolution:
        """Read the rule of a Hugging Face checkpoint.

        Raises:
            InputError: a setting is missing, or the processor's and the model's contradict each other.
        """
        settings = Settings.read(folder, ("LlavaOnevisionImageProcessor",))
        side, patch = settings.side(), settings.patch()
        if settings.config.get("do_center_crop"):
            raise InputError(f"{settings.path}: do_center_crop would cut parts of the picture off")
        pinpoints = settings.need("image_grid_pinpoints")
        if pinpoints != settings.need_model("image_grid_pinpoints"):
            raise InputError(
                f"{settings.path}: image_grid_pinpoints differ from those of {settings.model_path}, so the tokens "
                "would not match the features",
                hint="copy both files of the published checkpoint",
            )
        strategy = settings.need_model("vision_feature_select_strategy")
        if strategy != "full":
            raise InputError(f"{settings.model_path}: vision_feature_select_strategy is {strategy!r}, not 'full'")
        ratio = settings.need_model("vision_aspect_ratio")
        start, _, most = str(ratio).rpartition("_")
        if start != "anyres_max" or not most.isdigit():
            raise InputError(f"{settings.model_path}: vision_aspect_ratio {ratio!r} is not anyres_max_N")
        canvases = tuple((int(height), int(width)) for height, width in pinpoints)
        settings.check_tokens("num_image_tokens", (side // patch) ** 2)
        return cls(side, patch, canvases, int(most), settings.resample(), settings.normalise())

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token, on the canvas."""
        return self.patch

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) in pixels that an image of this size is padded to.

        The one that keeps most of the picture's pixels wins; of equal ones, the one that wastes least.
        """

        def merit(canvas: tuple[int, int]) -> tuple[int, int]:
            scale = min(canvas[1] / width, canvas[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - canvas[0] * canvas[1]

        best = max(self.canvases, key=merit)  # the first of equals, as in transformers
        return best[1], best[0]

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the picture's size on the canvas, and the tokens of overview, unpadded tiles and row ends."""
        canvas = self.canvas(width, height)
        across = self.side // self.patch
        columns, rows = (edge // self.side * across for edge in canvas)
        # The model unpads the features and not the picture, so whole tokens are left, by transformers' arithmetic.
        if width / height > columns / rows:
            kept = int(round(height * (columns / width), 7))
            rows -= (rows - kept) // 2 * 2
        else:
            kept = int(round(width * (rows / height), 7))
            columns -= (columns - kept) // 2 * 2
        shrink = math.sqrt(columns * rows / (self.max_tiles * across**2))
        if shrink > _SHRINK_OVER:
            columns, rows = int(columns // shrink), int(rows // shrink)
        tokens = across**2 + rows * (columns + 1)
        return ImagePlan(Geometry(width, height, *self._inside(width, height, canvas)), (tokens,))

    def arrays(self, image: Image.Image) -> Arrays:
        """Return pixel_values float32 [1 + tiles, 3, side, side], overview first, and image_sizes [1, 2].

        image_sizes (int64) is the original height and width, from which the model computes the unpadding.
        """
        check_rgb(image)
        side = self.side
        width, height = self.canvas(image.width, image.height)
        resized = image.resize(self._inside(image.width, image.height, (width, height)), self.resample)
        padded = Image.new("RGB", (width, height))
        padded.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
        corners = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
        tiles = [padded.crop((x, y, x + side, y + side)) for x, y in corners]
        overview = image.resize((side, side), self.resample)
        return {
            "pixel_values": self.normalise([overview, *tiles]),
            "image_sizes": np.array([[image.height, image.width]], np.int64),
        }

    def _whole_tiles(self, edge: object) -> bool:
        return type(edge) is int and self.side <= edge <= 1 << 16 and edge % self.side == 0

    def _inside(self, width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) of the picture on its canvas; it touches two opposite edges."""
        by_width, by_height = canvas[0] / width, canvas[1] / height
        if by_width < by_height:
            return canvas[0], min(math.ceil(height * by_width), canvas[1])
        return min(math.ceil(width * by_height), canvas[0]), canvas[1]
