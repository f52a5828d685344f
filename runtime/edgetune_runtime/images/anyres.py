"""LLaVA-OneVision's any resolution: a stretched overview, and tiles of the picture padded onto the best of given sizes.

arXiv 2408.03326, section 3.2. The model drops the tokens of the padding, ends each row of tokens with one more
(`image_newline`) and shrinks grids of over `max_tiles` tiles; how many tokens that leaves is computed here as
transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Preprocessing, check_rgb, check_sizes, in_turn
from edgetune_runtime.images.config import Normalise, Settings

_SHRINK_OVER = 1.1
"""A grid is shrunk when its side is over this many times that of `max_tiles` tiles."""


_WHOLE = np.array([1, 0, 0, 0], np.float32)
"""The shares of a token that is one feature."""


@dataclass(frozen=True)
class _Grid:
    """Which features of a picture's tiles become tokens.

    Attributes:
        top: rows of the canvas above the picture.
        left: columns of the canvas before it.
        high: rows of the picture on the canvas.
        wide: columns of the picture on the canvas.
        tiles: of a row of the canvas.
        rows: of tokens, fewer than `high` where the grid is shrunk.
        columns: of tokens, the row's end not counted.
    """

    top: int
    left: int
    high: int
    wide: int
    tiles: int
    rows: int
    columns: int

    def taps(self, across: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return for each token, row ends included, four features of all tiles, and how much of each.

        Args:
            across: features of a tile's side. The overview's come first, then tile by tile, each row by row.
        """
        (near, far, below), (left, right, beside) = _between(self.high, self.rows), _between(self.wide, self.columns)
        # The row's end takes any feature here: its place is that of another vector.
        left, right, beside = np.append(left, 0), np.append(right, 0), np.append(beside, np.float32(0))

        def feature(row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            row, column = row[:, None] + self.top, column[None] + self.left
            tile = 1 + row // across * self.tiles + column // across
            flat: npt.NDArray[np.int64] = (tile * across**2 + row % across * across + column % across).ravel()
            return flat

        def share(row: npt.NDArray[np.float32], column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            return (row[:, None] * column[None]).ravel()

        one = np.float32(1)
        rows = [feature(row, column) for row in (near, far) for column in (left, right)]
        shares = [share(row, column) for row in (one - below, below) for column in (one - beside, beside)]
        return np.stack(rows, axis=1), np.stack(shares, axis=1)


def _between(size: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return both neighbours of `count` evenly spread points among `size` ones, and the share of the second.

    Edges are aligned, not centres, as in torch's bilinear `interpolate`, and computed in float32 as there.
    """
    scale = np.float32(size / max(count, 1))  # a very long picture keeps no column at all
    place = np.maximum(scale * (np.arange(count, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    near = place.astype(np.int64)
    return near, np.minimum(near + 1, size - 1), place - near.astype(np.float32)


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

    @property
    def most_tokens(self) -> int:
        """Image tokens of one picture, at most: overview, the largest grid that is not shrunk, and its row ends."""
        across = self.side // self.patch
        least = int(_SHRINK_OVER**2 * self.max_tiles * across**2)
        grids = [tuple(edge // self.side * across for edge in canvas) for canvas in self.canvases]
        return across**2 + max(min(rows * columns, least) + rows for rows, columns in grids)

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the picture's size on the canvas, and the tokens of overview, unpadded tiles and row ends."""
        grid = self._grid(width, height)
        tokens = (self.side // self.patch) ** 2 + grid.rows * (grid.columns + 1)
        return ImagePlan(Geometry(width, height, *self._inside(width, height, self.canvas(width, height))), (tokens,))

    def _grid(self, width: int, height: int) -> _Grid:
        """Return which features of the tiles are kept of a picture of this size, by transformers' arithmetic."""
        across = self.side // self.patch
        wide, high = columns, rows = [edge // self.side * across for edge in self.canvas(width, height)]
        # The model unpads the features and not the picture, so whole tokens are left.
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        kept = (high - rows) // 2, (wide - columns) // 2, rows, columns
        shrink = math.sqrt(columns * rows / (self.max_tiles * across**2))
        if shrink > _SHRINK_OVER:
            columns, rows = int(columns // shrink), int(rows // shrink)
        return _Grid(*kept, wide // across, rows, columns)

    @property
    def scaling(self) -> Normalise:
        """The rule's own."""
        return self.normalise

    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return pixel_values float32 [1 + tiles, 3, side, side], overview first, and image_sizes [1, 2].

        Raw, pixel_values are uint8.

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
            "pixel_values": self.normalise([overview, *tiles], raw=raw),
            "image_sizes": np.array([[image.height, image.width]], np.int64),
        }

    def encoder_arrays(self, parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Arrays:
        """Return pixel_values float32 [tiles, 3, side, side] of several images, and what each token is made of.

        token_rows int64 [tokens, 4] are rows of the encoder's output before it is put together, and token_shares
        float32 [tokens, 4] how much of each: row 0 is `image_newline`, the tiles' features follow. A token has one
        row, or four where a grid is shrunk bilinearly.
        """
        across, first = self.side // self.patch, 1
        rows, shares = [], []
        for part in parts:
            for height, width in part["image_sizes"].tolist():
                grid = self._grid(width, height)
                overview = np.repeat(np.arange(across**2)[:, None], 4, axis=1)
                taps, weights = grid.taps(across)
                ends = slice(grid.columns, None, grid.columns + 1)
                taps[ends], weights[ends] = -first, _WHOLE  # row 0: image_newline
                rows.append(first + np.concatenate([overview, taps]))
                shares += [np.tile(_WHOLE, (len(overview), 1)), weights]
            first += len(part["pixel_values"]) * across**2
        tokens = {"token_rows": np.concatenate(rows), "token_shares": np.concatenate(shares)}
        return {"pixel_values": in_turn(parts, "pixel_values"), **tokens}

    def _whole_tiles(self, edge: object) -> bool:
        return type(edge) is int and self.side <= edge <= 1 << 16 and edge % self.side == 0

    def _inside(self, width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) of the picture on its canvas; it touches two opposite edges."""
        by_width, by_height = canvas[0] / width, canvas[1] / height
        if by_width < by_height:
            return canvas[0], min(math.ceil(height * by_width), canvas[1])
        return min(math.ceil(width * by_height), canvas[0]), canvas[1]
