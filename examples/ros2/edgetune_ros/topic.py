"""A topic as a source of frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgetune_ros.convert import picture
from edgetune_runtime.errors import ImageError
from edgetune_runtime.live.frames import StillPicture
from edgetune_runtime.live.sources import Fault, Shot, Source


@dataclass(frozen=True)
class RosPicture(StillPicture):
    """A picture with the header of the message that it came in."""

    header: Any = None


class Topic(Source):
    """What a subscription is given to; the newest message wins.

    Args:
        name: of the topic.
    """

    def __init__(self, name: str) -> None:
        self.name, self.live = name, True
        self._changed = threading.Condition()
        self._newest: tuple[Any, float] | None = None
        self._ended = False

    def push(self, message: Any) -> None:
        """Take a sensor_msgs Image or CompressedImage; the callback of a subscription."""
        with self._changed:
            self._newest = (message, time.monotonic())
            self._changed.notify()

    def end(self) -> None:
        """No further message comes."""
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
                yield Shot(RosPicture(picture(message), message.header), captured)
            except ImageError as error:
                yield Fault(str(error))
