"""What tests of the live part share: scenes that move as is known, as videos and as sources."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from edgetune_runtime.live.frames import StillPicture
from edgetune_runtime.live.sources import Fault, Shot, Source, SourceError
from served import Asked


def video(path: Path, pictures: Sequence[Image.Image], *, rate: int = 30, codec: str = "libx264") -> Path:
    """Write pictures as a video that loses next to nothing."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "8", "g": "15"}
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shift(number: int) -> tuple[int, int]:
    """How far the scene of `moving` has moved, in pixels."""
    step = number % 80
    step = step if step < 40 else 80 - step
    return -step, step // 2


def moving(scene: Image.Image, count: int) -> list[Image.Image]:
    """A scene that moves to the left and down, and back again."""
    pictures = []
    for number in range(count):
        picture = Image.new("RGB", scene.size, (120, 120, 120))
        picture.paste(scene, shift(number))
        pictures.append(picture)
    return pictures


def plain(number: int) -> Image.Image:
    """A picture that tells its number: in eight stripes, dark and bright."""
    bits = np.repeat([[255 * (number >> bit & 1) for bit in range(8)]], 4, axis=1)
    return Image.fromarray(np.repeat(bits, 32, axis=0).astype(np.uint8)).resize((64, 64)).convert("RGB")


def number_of(picture: Image.Image) -> int:
    """The number that a picture of `plain` tells."""
    row = np.asarray(picture.convert("L"))[60]  # below what is drawn
    return sum(1 << bit for bit in range(8) if row[bit * 8 + 4] > 127)


class Scripted(Source):
    """A camera that does what a test says.

    Args:
        script: of each connection what comes: a picture, a fault, a number of seconds to wait, or an error to raise.
        live: whether it is a camera.
    """

    def __init__(self, *script: Iterable[Image.Image | Fault | float | SourceError], live: bool = True) -> None:
        self.name, self.live, self.returns = "a scripted camera", live, live
        self._connections = iter(script)

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        for step in next(self._connections, [SourceError("nothing more is scripted")]):
            if isinstance(step, SourceError):
                raise step
            if isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, Fault):
                yield step
            else:
                yield Shot(StillPicture(step), time.monotonic(), None if self.live else 0.0)


def scene_of(asked: Sequence[Asked]) -> tuple[Image.Image, str]:
    """The first picture of some with what is in it."""
    import io

    return Image.open(io.BytesIO(asked[0].picture)).convert("RGB"), asked[0].phrase
