"""A thread that reads a source, keeps its newest frame, and opens it again when it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from edgetune_runtime.errors import EdgetuneError
from edgetune_runtime.live.frames import Frame
from edgetune_runtime.live.sources import Fault, Shot, Source, SourceError

_LONGEST_WAIT = 15.0
"""Seconds between two attempts to open a source that has been away for long, or that has refused."""
_STEADY = 2.0
"""Seconds that a source has to be there before it counts as being there again."""
_TOLD = 100
"""Of so many faults one is told, and the first."""


def pause(away: float) -> float:
    """How long to wait before the next attempt to open a source, in seconds: a tenth of what it has been away.

    The end of an outage of ten seconds is so noticed within one second, and a camera that is off for the night is
    asked four times a minute.

    >>> pause(0.0), pause(10.0), pause(3600.0)
    (0.25, 1.0, 15.0)
    """
    return min(max(0.25, away / 10), _LONGEST_WAIT)


class Capture:
    """The newest frame of a source: a queue of one.

    Examples:
        >>> from edgetune_runtime.live.capture import Capture
        >>> from edgetune_runtime.live.sources import Paced, source_of
        >>> with Capture(Paced(source_of("frames"), speed=100)) as capture:
        ...     frame = capture.newest(after=-1)
        >>> frame.picture.size
        (96, 64)

    Args:
        source: that is read.
        tell: called with a line of words when the source is lost, when it is there again, and of faults.
        patient: whether a source that cannot be opened at first is waited for, as for one that is lost later.

    Attributes:
        frames: how many frames were read.
        faults: how many could not be decoded.
        losses: how often the source was lost.
        changed: notified when a frame has come, or the source has ended.
    """

    def __init__(
        self, source: Source, *, tell: Callable[[str], None] = lambda words: None, patient: bool = False
    ) -> None:
        self._source, self._tell, self._patient = source, tell, patient
        self.frames = self.faults = self.losses = 0
        self.changed = threading.Condition()
        self._newest: Frame | None = None
        self._error: EdgetuneError | None = None
        self._ended = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"capture {source.name}", daemon=True)

    def __enter__(self) -> Capture:
        """Start to read."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to read. A source that is silent at the moment is left to its thread, which ends by itself."""
        self.stop()
        self._thread.join(1.0)

    def stop(self) -> None:
        """Give no further frames; whoever waits for one no longer does."""
        self._closing.set()
        self._source.close()
        with self.changed:
            self.changed.notify_all()

    def newest(self, after: int, timeout: float | None = None) -> Frame | None:
        """Wait for a frame that comes after one of this number, and return the newest.

        Args:
            after: number of the last frame that was seen, -1 for none.
            timeout: seconds to wait at most.

        Returns:
            The frame, or None where the source has ended, or in the time none came.

        Raises:
            SourceError: the source could not be opened at first, or had no frame that could be read.
            MissingDependency: what reads it is not installed.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._has(after) or self._ended or self._closing.is_set(), timeout)
            if self._has(after) and not self._closing.is_set():
                return self._newest
            if self._error is not None:
                raise self._error
            return None

    @property
    def ended(self) -> bool:
        """Whether no further frame will come."""
        return self._ended

    @property
    def latest(self) -> Frame | None:
        """The newest frame that there is, None before the first."""
        return self._newest

    def _has(self, after: int) -> bool:
        return self._newest is not None and self._newest.number > after

    def _run(self) -> None:
        try:
            for shot in self._connected():
                if self._closing.is_set():
                    return
                if isinstance(shot, Fault):
                    self.faults += 1
                    tell_fault(self._tell, self._source, self.faults, shot)
                    continue
                frame = frame_of(shot, self.frames)
                with self.changed:
                    self.frames += 1
                    self._newest = frame
                    self.changed.notify_all()
            check_seen(self._source, self.frames, self.faults)
        except EdgetuneError as error:
            self._error = error
        except Exception as error:  # a decoder may raise anything; whoever waits for frames has to learn of it
            self._error = SourceError(f"{self._source.name}: {type(error).__name__}: {error}")
        finally:
            with self.changed:
                self._ended = True
                self.changed.notify_all()

    def _connected(self) -> Iterator[Shot | Fault]:
        """What the source gives, across its losses."""
        lost: float | None = None  # when it was noticed that it is lost
        while not self._closing.is_set():
            back: float | None = None  # since when it is there again
            try:
                for shot in self._source.shots():
                    if lost is not None and isinstance(shot, Shot):
                        now = time.monotonic()
                        back = now if back is None else back
                        if now - back >= _STEADY:
                            self._tell(f"{self._source.name}: there again after {back - lost:.1f} s")
                            lost = None
                    yield shot
                return
            except SourceError as error:
                first = not self.frames and lost is None
                if not self._source.returns or (first and not (self._patient and not error.refused)):
                    raise
                if self._closing.is_set():
                    return
                if lost is None:
                    lost = time.monotonic()
                    self.losses += 1
                    self._tell(f"{error}; trying again until it is there")
                wait = _LONGEST_WAIT if error.refused else pause(time.monotonic() - lost)
                self._closing.wait(wait)


def frame_of(shot: Shot, number: int) -> Frame:
    """A shot as a numbered frame, with the wall clock's time of its capture."""
    stamp = time.time_ns() - round((time.monotonic() - shot.captured) * 1e9)
    return Frame(number, shot.picture, shot.captured, stamp, shot.media_time)


def tell_fault(tell: Callable[[str], None], source: Source, count: int, found: Fault) -> None:
    """Tell of a frame that could not be read, if it is the first or one of many hundreds."""
    if count % _TOLD == 1:
        tell(f"{source.name}: a frame could not be read ({count} up to now): {found.problem}")


def check_seen(source: Source, frames: int, faults: int) -> None:
    """Refuse a recording, or faults alone, of which nothing could be looked at.

    Raises:
        SourceError: there was nothing.
    """
    if not frames and (faults or not source.live):
        raise SourceError(f"{source.name}: none of its {faults} frames could be read")
