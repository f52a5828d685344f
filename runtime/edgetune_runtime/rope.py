"""Multimodal rotary positions (M-RoPE, arXiv 2409.12191): three positions, (time, height, width), for every token.

Text advances all three together. An image's tokens share the time at which the image starts and count rows and columns
from it; the text after an image goes on from the largest position used, so an image costs max(rows, columns) positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.smart import ImageSpec

Positions = npt.NDArray[np.int64]


def mrope_positions(
    token_ids: npt.NDArray[np.int64], grids: npt.NDArray[np.int64], *, image_token: int, merge_size: int
) -> tuple[Positions, int]:
    """Number the tokens of one prompt.

    Args:
        token_ids: int64 [S]; each unbroken run of `image_token` is one image.
        grids: int64 [N, 3], the (frames, rows, columns) of patches of each image, in the order of the runs.
        image_token: id of the placeholder token.
        merge_size: patches per side that make one image token.

    Returns:
        int64 [3, S] positions and the position of the next token.

    Raises:
        InputError: the runs of image tokens do not match the grids.
    """
    is_image = token_ids == image_token
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_image, [False])).astype(np.int8)))
    runs = edges.reshape(-1, 2)  # [images, (first, one past the last)]
    if len(runs) != len(grids):
        raise InputError(f"the prompt has places for {len(runs)} images, but {len(grids)} are given")
    positions = np.empty((3, len(token_ids)), np.int64)
    following, done = 0, 0
    for (first, last), (frames, rows, columns) in zip(
        runs, grids // np.array([1, merge_size, merge_size]), strict=True
    ):
        if last - first != frames * rows * columns:
            raise InputError(f"an image of {frames * rows * columns} tokens has {last - first} places in the prompt")
        positions[:, done:first] = np.arange(following, following + first - done)
        following += first - done
        positions[:, first:last] = following + np.indices((frames, rows, columns)).reshape(3, -1)
        following += max(rows, columns)
        done = last
    positions[:, done:] = np.arange(following, following + len(token_ids) - done)
    # Not `following` plus the rest: a clip of more frames than rows and columns reaches beyond it in time.
    return positions, int(positions.max()) + 1


def prompt_positions(
    token_ids: npt.NDArray[np.int64], spec: Preprocessing, grids: npt.NDArray[np.int64] | None, *, image_token: int
) -> tuple[Positions, int]:
    """Number the tokens of one prompt as its model does.

    Args:
        token_ids: int64 [S].
        spec: the model's preprocessing; only families that resize smartly have multimodal positions.
        grids: see `mrope_positions`; None without an image.
        image_token: id of the placeholder token.

    Returns:
        int64 [3, S] positions, three times the token's own without M-RoPE, and the position of the next token.

    Raises:
        InputError: as `mrope_positions`.
    """
    if not isinstance(spec, ImageSpec):
        return np.tile(np.arange(len(token_ids)), (3, 1)), len(token_ids)
    grids = np.empty((0, 3), np.int64) if grids is None else grids
    return mrope_positions(token_ids, grids, image_token=image_token, merge_size=spec.merge_size)
