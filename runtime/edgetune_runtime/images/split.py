"""Idefics3's and SmolVLM's split: resized to a longest edge, cut into tiles with their row and column, and an overview.

arXiv 2408.12637, section 3.1, and arXiv 2504.05299. Three resizes follow each other in 8 bits (to the longest edge, to
whole tiles, and from there to the overview), and each rounds: doing it in one gives other pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Pieces, Preprocessing, check_rgb, check_sizes
from edgetune_runtime.images.config import Normalise, Settings

MAX_EDGE = 4096
"""Longest edge of an enlarged picture in pixels, fixed in transformers' code."""
_AROUND, _OVERVIEW = "<fake_token_around_image>", "<global-img>"


@dataclass(frozen=True)
class SplitTiles(Preprocessing):
    """One checkpoint's split.

    Attributes:
        side: of a tile, in pixels.
        longest_edge: that pictures are resized to first, in pixels.
        tile_tokens: image tokens of one tile.
        token_side: pixels per side of one image token.
        split: whether there are tiles at all, or the overview alone.
        resample: Pillow's filter.
        normalise: rescaling and normalisation.
    """

    side: int
    longest_edge: int
    tile_tokens: int
    token_side: int
    split: bool
    resample: Image.Resampling
    normalise: Normalise

    rule: ClassVar[str] = "split"

    def __post_init__(self) -> None:
        check_sizes(self, "side", "longest_edge", "tile_tokens", "token_side")
        if type(self.split) is not bool:
            raise InputError(f"split must be true or false, got {self.split!r}")

    @classmethod
    def from_checkpoint(cls, folder: Path) -> SplitTiles:
        """Read the rule of a Hugging Face checkpoint.

        Raises:
            InputError: a setting is missing, or they contradict each other.
        """
        settings = Settings.read(folder, ("SmolVLMImageProcessor", "Idefics3ImageProcessor"))
        side = settings.whole("max_image_size", "longest_edge")
        settings.check_tower(side)
        scale = settings.need_model("scale_factor")
        token_side = settings.patch() * int(scale)
        tokens = (side // settings.patch()) ** 2 // int(scale) ** 2
        settings.check_tokens("image_seq_len", tokens)
        split = settings.need("do_image_splitting")
        if not isinstance(split, bool):
            raise InputError(f"{settings.path}: do_image_splitting must be true or false, got {split!r}")
        edge = settings.whole("size", "longest_edge")
        return cls(side, edge, tokens, token_side, split, settings.resample(), settings.normalise())

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token, in the picture as it is cut into tiles."""
        return self.token_side

    @property
    def most_tokens(self) -> int:
        """Image tokens of one picture, at most: of a square of tiles and the overview."""
        edge = math.ceil(min(self.longest_edge, MAX_EDGE) / self.side) if self.split else 1
        return self.tile_tokens * (edge**2 + 1 if edge > 1 else 1)

    def sizes(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (width, height) in pixels after the first resize, and after the one to whole tiles.

        Shorter edges become even, and aspect ratios are kept as well as whole tiles allow.
        """
        first = _to_longest(width, height, self.longest_edge)
        first = _at_most(first, MAX_EDGE)
        if not self.split:
            return first, (self.side, self.side)
        width, height = first
        aspect = width / height
        if width >= height:
            width = self._whole(width)
            height = self._whole(int(width / aspect))
        else:
            height = self._whole(height)
            width = self._whole(int(height * aspect))
        return first, (width, height)

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the size that is cut into tiles, and the tiles' marks and tokens."""
        final = self.sizes(width, height)[1]
        return ImagePlan(Geometry(width, height, *final), self._pieces(final[0] // self.side, final[1] // self.side))

    @property
    def scaling(self) -> Normalise:
        """The rule's own."""
        return self.normalise

    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return pixel_values float32, or raw uint8, [tiles, 3, side, side], row by row, the overview last.

        transformers' pixel_attention_mask, which leaves out padding, is all ones for tiles of one size, and the model
        takes its absence for that.
        """
        check_rgb(image)
        first, final = self.sizes(image.width, image.height)
        whole = image.resize(first, self.resample).resize(final, self.resample)
        side = self.side
        tiles = []
        if final != (side, side):
            corners = [(x, y) for y in range(0, final[1], side) for x in range(0, final[0], side)]
            tiles = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
            whole = whole.resize((side, side), self.resample)
        return {"pixel_values": self.normalise([*tiles, whole], raw=raw)}

    def join(self, parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Arrays:
        """Return pixel_values float32 [1, tiles, 3, side, side].

        The model takes tiles by sample and pads samples with empty tiles; since it puts the features of all tiles in
        order into all image tokens in order, one row of real tiles says the same.
        """
        return {name: array[None] for name, array in super().join(parts).items()}

    def _whole(self, edge: int) -> int:
        return math.ceil(edge / self.side) * self.side

    def _pieces(self, columns: int, rows: int) -> Pieces:
        pieces: list[str | int] = []
        between = ""
        if columns * rows > 1:
            for row in range(1, rows + 1):
                for column in range(1, columns + 1):
                    pieces += [f"{between}{_AROUND}<row_{row}_col_{column}>", self.tile_tokens]
                    between = ""
                between = "\n"
            between = "\n\n"  # the last row's end, and an empty line
        return (*pieces, f"{between}{_AROUND}{_OVERVIEW}", self.tile_tokens, _AROUND)


def _to_longest(width: int, height: int, edge: int) -> tuple[int, int]:
    """Return a size whose longest edge is `edge`; the other one is made even."""
    aspect = width / height
    if width >= height:
        short = int(edge / aspect)
        return edge, max(short + short % 2, 1)
    short = int(edge * aspect)
    return max(short + short % 2, 1), edge


def _at_most(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Return a size whose longest edge is at most `edge`."""
    width, height = size
    if max(size) <= edge:
        return size
    aspect = width / height
    return (edge, max(int(edge / aspect), 1)) if width >= height else (max(int(edge * aspect), 1), edge)
