"""Frames and boxes as an MCAP file, which Foxglove and its libraries open."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetune_runtime.draw import PALETTE
from edgetune_runtime.errors import MissingDependency, install_command
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.observations import Observation, Seen
from edgetune_runtime.live.sinks import check_new_file

IMAGE, ANNOTATIONS, OBSERVATIONS, EVENTS = (
    "/camera/image",
    "/camera/boxes",
    "/edgetune/observations",
    "/edgetune/events",
)
"""Topics: foxglove.CompressedImage, foxglove.ImageAnnotations, and the JSON lines of `watch`."""
_QUALITY = 85
"""Of the pictures as JPEG."""


class Mcap:
    """Writes each frame with its boxes, at the time of its capture.

    Args:
        path: ends in .mcap; a file that is there is not replaced.

    Raises:
        InputError: the file exists, its name ends in something else, or its folder is missing.
        MissingDependency: foxglove-sdk is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import foxglove
            from foxglove import channels
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "foxglove-sdk is not installed", hint=install_command("mcap", "edgetune-runtime")
            ) from error
        check_new_file(path, [".mcap"])
        self._file = _File(path)
        self._foxglove = foxglove
        self._context = context = foxglove.Context()  # which closes its channels when nobody holds it
        self._writer: Any = None
        self._image = channels.CompressedImageChannel(IMAGE, context=context)
        self._boxes = channels.ImageAnnotationsChannel(ANNOTATIONS, context=context)
        anything = {"type": "object"}
        self._observations = foxglove.Channel(OBSERVATIONS, schema=anything, message_encoding="json", context=context)
        self._events = foxglove.Channel(EVENTS, schema=anything, message_encoding="json", context=context)
        self._written: deque[int] = deque(maxlen=1024)  # numbers of frames whose pictures are in the file

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""
        if self._writer is None:
            self._writer = self._foxglove.open_mcap(self._file.open(), context=self._context)
        frame = observation.frame
        if frame.number not in self._written:  # an answer may come after its frame was passed
            self._image.log(_image_message(observation), log_time=frame.stamp)
            self._written.append(frame.number)
        self._boxes.log(_annotations_message(observation), log_time=frame.stamp)
        self._observations.log(observation.to_dict(), log_time=frame.stamp)
        self._file.check()

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        self._events.log(event.to_dict(), log_time=event.observation.frame.stamp)
        self._file.check()

    def close(self) -> None:
        """As of `Sink`."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except RuntimeError:
                self._file.check()
                raise
            finally:
                self._file.close()


class _File:
    """A file that remembers what went wrong: the library logs it, and goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: Any = None
        self._error: OSError | None = None

    def open(self) -> _File:
        """Make the file, which must not be there."""
        self._stream = self._path.open("xb")
        return self

    def check(self) -> None:
        """Raise what went wrong first."""
        if self._error is not None:
            error, self._error = self._error, None
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def write(self, data: bytes | bytearray) -> int:
        """Write all of it."""
        return self._do(lambda: int(self._stream.write(data)))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go elsewhere."""
        return self._do(lambda: int(self._stream.seek(offset, whence)))

    def flush(self) -> None:
        """Give what is held to the system."""
        self._do(lambda: self._stream.flush() or 0)

    def close(self) -> None:
        """Close it; what could not be written was told before."""
        with suppress(OSError):
            self._stream.close()

    def _do(self, work: Callable[[], int]) -> int:
        try:
            return work()
        except OSError as error:
            self._error = self._error or error
            raise


def _timestamp(stamp: int) -> Any:
    from foxglove.messages import Timestamp

    return Timestamp(sec=stamp // 1_000_000_000, nsec=stamp % 1_000_000_000)


def _image_message(observation: Observation) -> Any:
    from foxglove.messages import CompressedImage

    held = io.BytesIO()
    observation.frame.picture.rgb().save(held, "JPEG", quality=_QUALITY)
    stamp = _timestamp(observation.frame.stamp)
    return CompressedImage(timestamp=stamp, frame_id="camera", data=held.getvalue(), format="jpeg")


def _annotations_message(observation: Observation) -> Any:
    from foxglove.messages import (
        ImageAnnotations,
        KeyValuePair,
        Point2,
        PointsAnnotation,
        PointsAnnotationType,
        TextAnnotation,
    )

    stamp, phrases = _timestamp(observation.frame.stamp), list(observation.phrases)
    points, texts = [], []
    for seen in observation.boxes:
        x1, y1, x2, y2 = seen.box
        corners = [Point2(x=x, y=y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
        told = {
            "phrase": seen.phrase,
            "label": seen.label,
            "score": json.dumps(seen.score),
            "source": seen.source,
            "age": f"{seen.age:.4f}",
        }
        ink = _color(PALETTE[phrases.index(seen.phrase) % len(PALETTE)])
        points.append(
            PointsAnnotation(
                timestamp=stamp,
                type=PointsAnnotationType.LineLoop,
                points=corners,
                outline_color=ink,
                thickness=2.0,
                metadata=[KeyValuePair(key=key, value=value) for key, value in told.items()],
            )
        )
        texts.append(
            TextAnnotation(timestamp=stamp, position=corners[0], text=_words(seen), font_size=12.0, text_color=ink)
        )
    return ImageAnnotations(points=points, texts=texts)


def _words(seen: Seen) -> str:
    score = "" if seen.score is None else f" {seen.score:.0%}"
    return f"{seen.label}{score}" + ("" if seen.source == "answered" else f" +{seen.age:.1f} s")


def _color(name: str) -> Any:
    from foxglove.messages import Color
    from PIL import ImageColor

    red, green, blue = (value / 255 for value in ImageColor.getrgb(name)[:3])
    return Color(r=red, g=green, b=blue, a=1.0)
