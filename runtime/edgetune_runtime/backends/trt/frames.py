"""What a TensorRT vision encoder is given at a time: one frame of one picture, or all tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgetune_runtime.backends.values import Arrays


def encoder_calls(images: Arrays) -> Iterator[Arrays]:
    """Yield the inputs of one call after the other.

    Frames of packed patches do not see each other, and need no mask with a call of their own. Tiles are a batch.

    Args:
        images: as of `Backend.encode_images`.
    """
    if "image_grid_thw" not in images:
        yield images
        return
    start, patches = 0, images["pixel_values"]
    for frames, rows, columns in images["image_grid_thw"].tolist():
        for _ in range(frames):
            end = start + rows * columns
            yield {"pixel_values": patches[start:end], "image_grid_thw": np.array([[1, rows, columns]], np.int64)}
            start = end
