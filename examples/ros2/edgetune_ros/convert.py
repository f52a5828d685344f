"""Pictures out of ROS messages, and boxes into them, with numpy alone: no cv_bridge, and no ROS to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import load_image
from edgetune_runtime.live.observations import Observation

Pixels = npt.NDArray[np.uint8]


def _yuv(pixels: Pixels, y: tuple[int, int], u: int, v: int) -> Pixels:
    """RGB of 4:2:2 pairs [H, W / 2, 4] by ITU-R BT.601 in studio range, as cameras send it."""
    luma = pixels[..., list(y)].reshape(pixels.shape[0], -1).astype(np.float32) - 16
    blue, red = (np.repeat(pixels[..., place].astype(np.float32) - 128, 2, axis=1) for place in (u, v))
    rgb = (
        1.164 * luma + 1.596 * red,
        1.164 * luma - 0.392 * blue - 0.813 * red,
        1.164 * luma + 2.017 * blue,
    )
    rounded: Pixels = np.clip(np.rint(np.stack(rgb, axis=-1)), 0, 255).astype(np.uint8)
    return rounded


_ENCODINGS: dict[str, tuple[int, Callable[[Pixels], Pixels]]] = {
    "rgb8": (3, lambda pixels: pixels),
    "bgr8": (3, lambda pixels: pixels[..., ::-1]),
    "8UC3": (3, lambda pixels: pixels[..., ::-1]),  # what OpenCV holds in it
    "rgba8": (4, lambda pixels: pixels[..., :3]),
    "bgra8": (4, lambda pixels: pixels[..., 2::-1]),
    "8UC4": (4, lambda pixels: pixels[..., 2::-1]),
    "mono8": (1, lambda pixels: np.repeat(pixels, 3, axis=2)),
    "8UC1": (1, lambda pixels: np.repeat(pixels, 3, axis=2)),
    "yuv422": (2, lambda pixels: _yuv(_pairs(pixels), (1, 3), 0, 2)),
    "uyvy": (2, lambda pixels: _yuv(_pairs(pixels), (1, 3), 0, 2)),
    "yuv422_yuy2": (2, lambda pixels: _yuv(_pairs(pixels), (0, 2), 1, 3)),
    "yuyv": (2, lambda pixels: _yuv(_pairs(pixels), (0, 2), 1, 3)),
}
"""Bytes of a pixel, and how pixels [H, W, bytes] become RGB, of sensor_msgs/image_encodings.hpp."""


def _pairs(pixels: Pixels) -> Pixels:
    return pixels.reshape(pixels.shape[0], -1, 4)


def check(message: Any) -> None:
    """Refuse a sensor_msgs Image that `picture` cannot convert, without converting it.

    Raises:
        ImageError: as `picture`.
    """
    if message.encoding not in _ENCODINGS:
        raise ImageError(
            f"the encoding {message.encoding!r} is not read", hint=f"publish one of {', '.join(_ENCODINGS)}"
        )
    depth, _ = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(memoryview(message.data), np.uint8)
    if step < width * depth or data.size < height * step or (depth == 2 and width % 2):
        raise ImageError(
            f"{data.size} bytes in rows of {step} are no picture of {width}x{height} in {message.encoding}"
        )


def picture(message: Any) -> Image.Image:
    """Return the upright RGB picture of a sensor_msgs Image or CompressedImage.

    Raises:
        ImageError: the encoding is none that is known, or the bytes do not fit the size.
    """
    if not hasattr(message, "encoding"):
        return load_image(bytes(message.data))
    check(message)
    depth, convert = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(memoryview(message.data), np.uint8)
    rows = data[: height * step].reshape(height, step)[:, : width * depth]  # rows may be padded
    return Image.fromarray(np.ascontiguousarray(convert(rows.reshape(height, width, depth))))


def detections(observation: Observation, header: Any, types: Any) -> Any:
    """Return a vision_msgs Detection2DArray with the header of the picture that it is of.

    Boxes are in float pixels of that picture, by their middle and size. `class_id` is the phrase, `score` how sure the
    model was (0 where it does not tell), and `id` says whether the box was answered or tracked.

    Args:
        observation: of a watch.
        header: the picture's.
        types: where the classes of vision_msgs and geometry_msgs are found by their names.
    """
    found = []
    for seen in observation.boxes:
        x1, y1, x2, y2 = seen.box
        middle = types.Pose2D(position=types.Point2D(x=(x1 + x2) / 2, y=(y1 + y2) / 2), theta=0.0)
        hypothesis = types.ObjectHypothesis(class_id=seen.phrase, score=0.0 if seen.score is None else seen.score)
        pose = types.PoseWithCovariance(
            pose=types.Pose(
                position=types.Point(x=0.0, y=0.0, z=0.0), orientation=types.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0)
            ),
            covariance=np.zeros(36),
        )
        found.append(
            types.Detection2D(
                header=header,
                results=[types.ObjectHypothesisWithPose(hypothesis=hypothesis, pose=pose)],
                bbox=types.BoundingBox2D(center=middle, size_x=x2 - x1, size_y=y2 - y1),
                id=seen.source,
            )
        )
    return types.Detection2DArray(header=header, detections=found)
