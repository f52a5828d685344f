"""A frame of a camera or a recording: its pixels, and when they were taken."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import av

Gray = npt.NDArray[np.uint8]
"""Brightness [H, W], 0 to 255."""


class Picture(Protocol):
    """Pixels that are converted when somebody looks at them: most frames of a camera are never looked at."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, in pixels."""

    def rgb(self) -> Image.Image:
        """The upright picture."""

    def gray(self, size: tuple[int, int]) -> Gray:
        """The upright picture's brightness at a size (width, height), [height, width]."""


@dataclass(frozen=True)
class StillPicture:
    """A picture that is an image already, such as one of a folder."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """As of `Picture`."""
        return self.image.size

    def rgb(self) -> Image.Image:
        """As of `Picture`."""
        return self.image

    def gray(self, size: tuple[int, int]) -> Gray:
        """As of `Picture`."""
        return np.asarray(self.image.convert("L").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


class VideoPicture:
    """A picture as a decoder gives it, in its own pixel format, turned as its video says.

    Args:
        frame: of PyAV.
    """

    def __init__(self, frame: av.VideoFrame) -> None:
        self._frame = frame
        self._lock = threading.Lock()  # a frame converts itself with one scaler, which two threads would lock up
        self._turns = round(frame.rotation / 90) % 4  # counter-clockwise quarters, as numpy's rot90

    @property
    def size(self) -> tuple[int, int]:
        """As of `Picture`."""
        width, height = self._frame.width, self._frame.height
        return (height, width) if self._turns % 2 else (width, height)

    def rgb(self) -> Image.Image:
        """As of `Picture`."""
        with self._lock:
            return Image.fromarray(self._turned(self._frame.to_ndarray(format="rgb24")))

    def gray(self, size: tuple[int, int]) -> Gray:
        """As of `Picture`."""
        width, height = size[::-1] if self._turns % 2 else size
        with self._lock:
            return self._turned(self._frame.reformat(width=width, height=height, format="gray").to_ndarray())

    def _turned(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        number: from 0 on, in the order of capture; a source that was connected again goes on counting.
        picture: its pixels.
        captured: when it was taken, in seconds of `time.monotonic`, which nobody sets.
        stamp: when it was taken, in nanoseconds since 1970, by the clock that the machine had then.
        media_time: seconds from the start of a recording; None for cameras.
    """

    number: int
    picture: Picture
    captured: float
    stamp: int
    media_time: float | None = None

    @property
    def time(self) -> str:
        """The stamp as ISO 8601 in UTC, to the microsecond."""
        seconds, rest = divmod(self.stamp, 1_000_000_000)
        moment = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest // 1000)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
