"""The thread in which a model looks at the newest frame, and what it says of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from edgetune_runtime.answer import Answer, Detection
from edgetune_runtime.errors import Cancelled
from edgetune_runtime.live.capture import Capture
from edgetune_runtime.live.flow import Flow
from edgetune_runtime.live.frames import Frame, Gray
from edgetune_runtime.live.observations import Observation, Seen


@dataclass(frozen=True)
class Look:
    """What a model said of a frame.

    Attributes:
        frame: that it has looked at.
        answers: by phrase.
        seconds: what they cost.
        gray: the frame's small picture, from which boxes go on; None where they are not tracked.
    """

    frame: Frame
    answers: dict[str, Answer]
    seconds: float
    gray: Gray | None

    def flow(self) -> Flow | None:
        """What carries the boxes on, if they are to be."""
        if self.gray is None:
            return None
        return Flow([item.box for _, item in self._boxes()], self.frame.picture.size, self.gray)

    def answered(self, delay: float) -> Observation:
        """The observation of the frame itself; `delay` in seconds from its capture to now."""
        boxes = [Seen(phrase, item.label, item.box, item.score, "answered", delay) for phrase, item in self._boxes()]
        return Observation(self.frame, tuple(boxes), self._statuses(), True, delay, self.seconds)

    def tracked(self, frame: Frame, flow: Flow, *, age: float, delay: float) -> Observation:
        """The observation of a later frame, to which a flow has carried the boxes."""
        boxes = [
            Seen(phrase, item.label, box, item.score, "tracked", age)
            for (phrase, item), box in zip(self._boxes(), flow.boxes, strict=True)
            if box is not None
        ]
        return Observation(frame, tuple(boxes), self._statuses(), False, delay)

    def _boxes(self) -> list[tuple[str, Detection]]:
        return [(phrase, item) for phrase, answer in self.answers.items() for item in answer.detections]

    def _statuses(self) -> dict[str, str]:
        return {phrase: answer.status for phrase, answer in self.answers.items()}


class Answers:
    """Looks at the newest frame again and again, no faster than its looks are taken: there is room for one.

    Args:
        look: asks the model about a frame; the event cancels it.
        capture: where frames come from.
        every: least seconds from one frame to the next.
        stop: ends it.
    """

    def __init__(
        self, look: Callable[[Frame, threading.Event], Look], capture: Capture, every: float, stop: threading.Event
    ) -> None:
        self._look, self._capture, self._every, self._stop = look, capture, every, stop
        self._made: Look | None = None
        self._error: BaseException | None = None
        self._done = self._busy = False
        self._last: Frame | None = None  # that the model has begun to look at
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __enter__(self) -> Answers:
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up the answer that is being made."""
        self._stop.set()
        self._capture.stop()
        self._thread.join()

    @property
    def oldest(self) -> int:
        """Number of the oldest frame of which a look is still to come."""
        with self._capture.changed:
            newest = self._capture.latest
            if self._made is not None:
                return self._made.frame.number
            if self._busy and self._last is not None:
                return self._last.number
            return -1 if newest is None else newest.number

    def wait(self, *, after: int, frames: bool) -> tuple[Look | None, Frame | None]:
        """Wait for a look, or where `frames` is set for a frame after this number; neither at the end.

        Raises:
            BaseException: what ended the thread.
        """
        changed = self._capture.changed

        def newest() -> Frame | None:
            frame = self._capture.latest if frames else None
            return frame if frame is not None and frame.number > after else None

        with changed:
            changed.wait_for(lambda: self._made is not None or newest() is not None or self._done)
            look, self._made = self._made, None
            changed.notify_all()
            if look is None and self._error is not None:
                raise self._error
            return look, newest()

    def _run(self) -> None:
        try:
            while (frame := self._next()) is not None:
                look = self._look(frame, self._stop)
                with self._capture.changed:
                    self._busy, self._made = False, look
                    self._capture.changed.notify_all()
        except Cancelled:
            pass
        except BaseException as error:  # whoever waits raises it
            self._error = error
        finally:
            with self._capture.changed:
                self._done = True
                self._capture.changed.notify_all()

    def _next(self) -> Frame | None:
        """The newest frame once the last look was taken and it is time; None at the end."""
        changed, capture = self._capture.changed, self._capture
        with changed:
            changed.wait_for(lambda: self._made is None or self._stop.is_set())
            while not self._stop.is_set():
                frame = capture.newest(-1 if self._last is None else self._last.number)
                if frame is None:
                    return None
                early = 0.0 if self._last is None else self._last.captured + self._every - frame.captured
                if early <= 0:
                    self._busy, self._last = True, frame
                    return frame
                if capture.ended:
                    return None
                changed.wait(early)
        return None
