"""A topic as a source of frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

from edgetune_ros.convert import check, picture
from edgetune_runtime.errors import ImageError
from edgetune_runtime.live.frames import Gray, StillPicture
from edgetune_runtime.live.sources import Fault, Shot, Source


class RosPicture:
    """The picture of a message, which is converted when somebody looks at it; see `Picture`.

    Args:
        message: sensor_msgs Image or CompressedImage.

    Attributes:
        header: of the message.

    Raises:
        ImageError: it holds no picture that is read. A compressed one is decoded to tell.
    """

    def __init__(self, message: Any) -> None:
        self.header, self._message = message.header, message
        self._lock = threading.Lock()
        self._still: StillPicture | None = None
        if hasattr(message, "encoding"):
            check(message)
        else:
            self._still = StillPicture(picture(message))

    def _converted(self) -> StillPicture:
        with self._lock:
            if self._still is None:
                self._still = StillPicture(picture(self._message))
            return self._still

    @property
    def size(self) -> tuple[int, int]:
        """As of `Picture`."""
        return self._converted().size

    def rgb(self) -> Image.Image:
        """As of `Picture`."""
        return self._converted().rgb()

    def gray(self, size: tuple[int, int]) -> Gray:
        """As of `Picture`."""
        return self._converted().gray(size)


class Topic(Source):
    """What a subscription is given to; the newest message wins.

    Args:
        name: of the topic.
    """

    def __init__(self, name: str) -> None:
        self.name, self.live, self.returns = name, True, False
        self._changed = threading.Condition()
        self._newest: tuple[Any, float] | None = None
        self._ended = False

    def push(self, message: Any) -> None:
        """Take a sensor_msgs Image or CompressedImage; the callback of a subscription."""
        with self._changed:
            self._newest = (message, time.monotonic())
            self._changed.notify()

    def close(self) -> None:
        """No further message is waited for."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                if self._newest is None:
                    return
                message, captured = self._newest
                self._newest = None
            try:
                taken = RosPicture(message)
            except ImageError as error:
                yield Fault(str(error))
                continue
            yield Shot(taken, captured)
