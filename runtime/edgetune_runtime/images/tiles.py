"""InternVL's dynamic tiles: the picture is stretched onto the grid of tiles nearest to its shape, plus a thumbnail.

arXiv 2404.16821, section 3.2; in transformers `GotOcr2ImageProcessor` with `crop_to_patches`, which `InternVLProcessor`
always switches on, whatever the checkpoint's preprocessor config says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Preprocessing, check_rgb, check_sizes
from edgetune_runtime.images.config import Normalise, Settings

_MOST_TILES = 256
"""More than any model was trained with; grids are tried one by one."""


@dataclass(frozen=True)
class DynamicTiles(Preprocessing):
    """One checkpoint's tiles.

    Attributes:
        side: of a tile, in pixels.
        min_tiles: fewest tiles of a grid.
        max_tiles: most tiles of a grid, the thumbnail not counted.
        tile_tokens: image tokens of one tile.
        token_side: pixels per side of one image token.
        resample: Pillow's filter.
        normalise: rescaling and normalisation.
    """

    side: int
    min_tiles: int
    max_tiles: int
    tile_tokens: int
    token_side: int
    resample: Image.Resampling
    normalise: Normalise

    rule: ClassVar[str] = "tiles"

    def __post_init__(self) -> None:
        check_sizes(self, "side", "min_tiles", "max_tiles", "tile_tokens", "token_side")
        if not self.min_tiles <= self.max_tiles <= _MOST_TILES:
            raise InputError(f"max_tiles must be {self.min_tiles} to {_MOST_TILES}, got {self.max_tiles}")

    @classmethod
    def from_checkpoint(cls, folder: Path) -> DynamicTiles:
        """Read the rule of a Hugging Face checkpoint.

        Raises:
            InputError: a setting is missing, or they contradict each other.
        """
        settings = Settings.read(folder, ("GotOcr2ImageProcessor",))
        side, patch = settings.side(), settings.patch()
        ratio = settings.need_model("downsample_ratio")
        token_side = round(patch / ratio)
        tokens = (side // token_side) ** 2
        settings.check_tokens("image_seq_length", tokens)
        least, most = settings.whole("min_patches"), settings.whole("max_patches")
        if least > most:
            raise InputError(f"{settings.path}: min_patches {least} is over max_patches {most}")
        return cls(side, least, most, tokens, token_side, settings.resample(), settings.normalise())

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token, in the stretched picture."""
        return self.token_side

    @property
    def most_tokens(self) -> int:
        """Image tokens of one picture, at most: of all tiles and the thumbnail."""
        return self.tile_tokens * _with_thumbnail(self.max_tiles)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (columns, rows) of the grid for an image of this size in pixels.

        The nearest aspect ratio wins; of grids with the same one, a larger one wins while the picture has more than
        half of its pixels.
        """
        counts = range(1, self.max_tiles + 1)
        grids = [(c, r) for c in counts for r in counts if self.min_tiles <= c * r <= self.max_tiles]
        best, least = (1, 1), float("inf")
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            difference = abs(width / height - columns / rows)
            enough = width * height > 0.5 * self.side * self.side * columns * rows
            if difference < least or (difference == least and enough):
                best, least = (columns, rows), difference
        return best

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the stretched size, and `<img>` … `</img>` around the tokens of all tiles."""
        columns, rows = self.grid(width, height)
        tokens = self.tile_tokens * _with_thumbnail(columns * rows)
        return ImagePlan(Geometry(width, height, columns * self.side, rows * self.side), ("<img>", tokens, "</img>"))

    @property
    def scaling(self) -> Normalise:
        """The rule's own."""
        return self.normalise

    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return pixel_values float32 [tiles, 3, side, side]: row by row, then the whole picture as one tile.

        Raw they are uint8.
        """
        check_rgb(image)
        side = self.side
        columns, rows = self.grid(image.width, image.height)
        stretched = image.resize((columns * side, rows * side), self.resample)
        corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
        tiles = [stretched.crop((x, y, x + side, y + side)) for x, y in corners]
        if len(tiles) > 1:
            tiles.append(image.resize((side, side), self.resample))
        return {"pixel_values": self.normalise(tiles, raw=raw)}


def _with_thumbnail(tiles: int) -> int:
    return tiles + 1 if tiles > 1 else 1
