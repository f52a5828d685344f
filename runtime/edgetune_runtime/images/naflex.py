"""LFM2-VL's native resolution: a picture keeps its shape, and a large one is stretched onto a grid of square tiles.

LFM2 technical report, arXiv 2511.23404, on the vision-language models; the encoder is the NaFlex variant of SigLIP 2,
arXiv 2502.14786, which takes patches of pictures of any shape. In transformers `Lfm2VlImageProcessor`, which computes
with torch's resize alone: Pillow's, used here, gives a few pixels the neighbouring 8-bit value.
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
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.images.base import Arrays, ImagePlan, Preprocessing, check_rgb, check_sizes
from edgetune_runtime.images.config import Normalise, Settings

_MOST_TILES = 256
"""More than any model was trained with; grids are tried one by one."""
_MOST_TOLERANCE = 1_000_000
_START, _END, _THUMBNAIL = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"


@dataclass(frozen=True)
class NaFlex(Preprocessing):
    """One checkpoint's limits.

    Attributes:
        patch_size: pixels per side of a vision patch.
        downsample_factor: patches per side that become one image token.
        min_image_tokens: of a picture that is not cut into tiles; smaller ones are enlarged.
        max_image_tokens: of a picture that is not cut into tiles, and of the thumbnail; larger ones are shrunk.
        min_tiles: fewest tiles of a grid.
        max_tiles: most tiles of a grid, the thumbnail not counted; with 1 there are no grids.
        tile_size: pixels per side of a tile.
        max_pixels_tolerance: a picture is cut when it has more than this many times the pixels of `max_image_tokens`.
        split: whether pictures are cut at all.
        use_thumbnail: whether the whole picture follows its tiles.
        resample: Pillow's filter.
        normalise: rescaling and normalisation.

    Raises:
        InputError: a value is none that a model can have.
    """

    patch_size: int
    downsample_factor: int
    min_image_tokens: int
    max_image_tokens: int
    min_tiles: int
    max_tiles: int
    tile_size: int
    max_pixels_tolerance: float
    split: bool
    use_thumbnail: bool
    resample: Image.Resampling
    normalise: Normalise

    rule: ClassVar[str] = "naflex"
    by_pixel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_sizes(self, "patch_size", "downsample_factor", "min_image_tokens", "max_image_tokens")
        check_sizes(self, "min_tiles", "max_tiles", "tile_size")
        for name in ("split", "use_thumbnail"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}")
        tolerance = self.max_pixels_tolerance
        if type(tolerance) not in (int, float) or not 0 < tolerance <= _MOST_TOLERANCE:
            raise InputError(f"max_pixels_tolerance must be a number over 0 to {_MOST_TOLERANCE}, got {tolerance!r}")
        least, most = self.min_image_tokens, self.max_image_tokens
        if least > most:
            raise InputError(f"min_image_tokens {least} is over max_image_tokens {most}")
        if not self.split:
            return  # what grids would be like is of no effect then
        # Of a grid of one tile, transformers counts the tokens of the whole picture, which may be others.
        if not (2 <= self.min_tiles <= self.max_tiles <= _MOST_TILES or self.min_tiles == self.max_tiles == 1):
            raise InputError(
                f"min_tiles and max_tiles must be in order and 2 to {_MOST_TILES}, or both 1, got {self.min_tiles} and "
                f"{self.max_tiles}"
            )
        if self.tile_size % self.token_pixels:
            raise InputError(
                f"tile_size {self.tile_size} is no multiple of the {self.token_pixels} pixels of an image token"
            )

    @classmethod
    def from_checkpoint(cls, folder: Path) -> NaFlex:
        """Read the rule of a Hugging Face checkpoint.

        `do_resize`, which published checkpoints set to false, is not looked at: neither does transformers.

        Raises:
            InputError: a setting is missing, or the processor's and the model's contradict each other.
        """
        settings = Settings.read(folder, ("Lfm2VlImageProcessor",), ("do_rescale", "do_normalize", "do_pad"))
        if settings.processor.get("use_image_special_tokens", True) is not True:
            raise InputError(f"{folder / 'processor_config.json'}: use_image_special_tokens must be true")
        patch, factor = settings.whole("encoder_patch_size"), settings.whole("downsample_factor")
        for ours, value, theirs in (
            ("encoder_patch_size", patch, ("vision_config", "patch_size")),
            ("downsample_factor", factor, ("downsample_factor",)),
        ):
            built_for = settings.need_model(*theirs)
            if built_for != value:
                raise InputError(
                    f"{settings.path}: {ours} is {value}, but {'.'.join(theirs)} is {built_for!r} in "
                    f"{settings.model_path}",
                    hint="copy both files of the published checkpoint",
                )
        values: dict[str, Any] = {"patch_size": patch, "downsample_factor": factor}
        for name in ("min_image_tokens", "max_image_tokens", "min_tiles", "max_tiles", "tile_size"):
            values[name] = settings.whole(name)
        values["max_pixels_tolerance"] = settings.need("max_pixels_tolerance")
        values["split"], values["use_thumbnail"] = map(settings.need, ("do_image_splitting", "use_thumbnail"))
        resample, normalise = settings.resample(), settings.normalise()
        try:
            return cls(**values, resample=resample, normalise=normalise)
        except InputError as error:
            raise InputError(f"{settings.path}: {error}") from error

    @property
    def token_pixels(self) -> int:
        """Pixels per side of one image token, in the resized picture and in tiles."""
        return self.patch_size * self.downsample_factor

    @property
    def max_patches(self) -> int:
        """Patches that each tile is padded to, and at most of a picture that is not cut."""
        whole = self.max_image_tokens * self.downsample_factor**2
        return max(whole, (self.tile_size // self.patch_size) ** 2) if self.split else whole

    @property
    def most_tokens(self) -> int:
        """Image tokens of one picture, at most: of the largest grid and its thumbnail."""
        whole = self.max_patches // self.downsample_factor**2
        if not self._cuts:
            return whole
        return max(whole, self._tokens(self.tile_size, self.tile_size) * self.max_tiles + whole * self.use_thumbnail)

    @property
    def patch_values(self) -> int:
        """Rows, columns and channels of one patch."""
        return 3 * self.patch_size**2

    @property
    def _cuts(self) -> bool:
        return self.split and self.max_tiles > 1

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (columns, rows) of the grid for an image of this size in pixels; (1, 1) where it is not cut.

        The nearest aspect ratio wins; of grids with the same one, a larger one wins while the picture has more than
        half of its pixels. Grids of two different ratios, as near as each other and with as many tiles, only exist
        where there is little choice (from 4 to 4 tiles): transformers takes them in the order of a set, and here the
        narrower one comes first.

        Raises:
            ImageError: the image is empty.
        """
        if min(width, height) < 1:
            raise ImageError(f"the image is empty: {width}x{height} pixels")
        if not self._cuts:
            return 1, 1
        side = self.token_pixels
        # As transformers has it, this rounding may leave a very thin picture half a token.
        high, wide = (max(self.patch_size, round(edge / side) * side) for edge in (height, width))
        if high * wide <= self.max_image_tokens * side**2 * self.max_pixels_tolerance:
            return 1, 1
        columns = range(1, self.max_tiles + 1)
        grids = [(c, r) for c in columns for r in range(1, self.max_tiles // c + 1) if c * r >= self.min_tiles]
        best, least = (1, 1), math.inf
        for c, r in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            difference = abs(width / height - c / r)
            enough = width * height > 0.5 * self.tile_size**2 * c * r
            if difference < least or (difference == least and enough):
                best, least = (c, r), difference
        return best

    def whole(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) in pixels of a picture that is not cut, or of its thumbnail.

        Both are multiples of `token_pixels`.

        Raises:
            ImageError: the image is empty, or so thin that it would have more than `max_patches`, for which
                transformers has no place.
        """
        if min(width, height) < 1:
            raise ImageError(f"the image is empty: {width}x{height} pixels")
        side = self.token_pixels
        most, least = self.max_image_tokens * side**2, self.min_image_tokens * side**2
        high, wide = (max(side, round(edge / side) * side) for edge in (height, width))
        if high * wide > most:
            shrink = math.sqrt(height * width / most)
            high, wide = (max(side, math.floor(edge / shrink / side) * side) for edge in (height, width))
        elif high * wide < least:
            grow = math.sqrt(least / (height * width))
            high, wide = (math.ceil(edge * grow / side) * side for edge in (height, width))
        if self._tokens(wide, high) * self.downsample_factor**2 > self.max_patches:
            raise ImageError(
                f"a {width}x{height} image would be resized to {wide}x{high} pixels, which are more than the "
                f"{self.max_patches} patches that the model takes",
                hint="crop or pad the image",
            )
        return wide, high

    def plan(self, width: int, height: int) -> ImagePlan:
        """Return the size of the grid or of the resized picture, and the tokens, with the tiles' marks of a grid."""
        columns, rows = self.grid(width, height)
        if columns * rows == 1:
            wide, high = self.whole(width, height)
            return ImagePlan(Geometry(width, height, wide, high), (_START, self._tokens(wide, high), _END))
        side = self.tile_size
        pieces: list[str | int] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                begin = "" if pieces else _START
                pieces += [f"{begin}<|img_row_{row}_col_{column}|>", self._tokens(side, side)]
        if self.use_thumbnail:
            pieces += [_THUMBNAIL, self._tokens(*self.whole(width, height))]
        return ImagePlan(Geometry(width, height, columns * side, rows * side), (*pieces, _END))

    @property
    def scaling(self) -> Normalise:
        """The rule's own."""
        return self.normalise

    def arrays(self, image: Image.Image, *, raw: bool = False) -> Arrays:
        """Return what transformers' model takes of one image: its tiles row by row, then the thumbnail.

        pixel_values is float32, or raw uint8, [tiles, max_patches, P·P·C]: patches row by row, each with its pixels
        row by row and the channels of a pixel together, then zeros. pixel_attention_mask is int32 [tiles,
        max_patches], 1 where there is a patch, and spatial_shapes int64 [tiles, 2], the rows and columns of patches.

        Raises:
            ImageError: the image is not 8-bit RGB, or its size is refused (see `whole`).
        """
        check_rgb(image)
        side = self.tile_size
        columns, rows = self.grid(image.width, image.height)
        tiles = []
        if columns * rows == 1 or self.use_thumbnail:
            tiles = [image.resize(self.whole(image.width, image.height), self.resample)]
        if columns * rows > 1:
            stretched = image.resize((columns * side, rows * side), self.resample)
            corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
            tiles = [*(stretched.crop((x, y, x + side, y + side)) for x, y in corners), *tiles]
        table = None if raw else self.normalise.fused_table()
        values = np.zeros((len(tiles), self.max_patches, self.patch_values), np.uint8 if raw else np.float32)
        mask = np.zeros(values.shape[:2], np.int32)
        shapes = np.array([(tile.height, tile.width) for tile in tiles], np.int64) // self.patch_size
        for index, tile in enumerate(tiles):
            patches = self._patches(tile, table)
            values[index, : len(patches)] = patches
            mask[index, : len(patches)] = 1
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def encoder_arrays(self, parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Arrays:
        """Return what an exported vision encoder takes of several images: their patches alone, in the order of merging.

        pixel_values is float32, or raw uint8, [patches, P·P·C]: tile after tile, the patches of one image token next
        to each other row by row, tokens row by row. A patch keeps the order of `arrays`, which is that of
        the checkpoint's weight. image_grid_thw is int64 [tiles, 3]: 1, and the rows and columns of a tile's patches.

        Args:
            parts: the `arrays` of each image.
        """
        near = self.downsample_factor
        rows, grids = [], []
        for part in parts:
            for values, (high, wide) in zip(part["pixel_values"], part["spatial_shapes"].tolist(), strict=True):
                groups = values[: high * wide].reshape(high // near, near, wide // near, near, -1)
                rows.append(groups.transpose(0, 2, 1, 3, 4).reshape(high * wide, -1))
                grids.append((1, high, wide))
        return {"pixel_values": np.concatenate(rows), "image_grid_thw": np.array(grids, np.int64)}

    def _tokens(self, width: int, height: int) -> int:
        """Return the image tokens of a tile or a whole picture, whose sides are multiples of `token_pixels`."""
        return width // self.token_pixels * (height // self.token_pixels)

    def _patches(self, tile: Image.Image, table: npt.NDArray[np.float32] | None) -> npt.NDArray[Any]:
        """Return a tile's patches [rows * columns, P·P·C]: float32 by a table of normalisation, or uint8 without."""
        size, pixels = self.patch_size, np.asarray(tile)  # [H, W, 3] uint8
        values: npt.NDArray[Any] = pixels if table is None else table[np.arange(3), pixels]
        grid = values.reshape(tile.height // size, size, tile.width // size, size, 3)
        patches: npt.NDArray[Any] = grid.transpose(0, 2, 1, 3, 4).reshape(-1, self.patch_values)
        return patches
