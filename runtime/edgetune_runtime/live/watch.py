"""A session that looks at the newest frame, again and again, and boxes that are carried on in between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol

from edgetune_runtime.answer import Answer
from edgetune_runtime.errors import Cancelled, InputError
from edgetune_runtime.images.load import ImageSource
from edgetune_runtime.live.capture import Capture
from edgetune_runtime.live.flow import Box, Flow, load_opencv, small
from edgetune_runtime.live.frames import Frame, Gray
from edgetune_runtime.live.sources import Fault, Source

_TRAIL = 128
"""Small pictures that are kept while an answer is made, to carry its boxes along: 10 MB at most."""
_STEPS = 16
"""Steps in which the boxes of an answer catch up with the newest frame."""
_SPARE = 8
"""Frames that are kept in any case: the model may be about to look at one of them."""


class Looking(Protocol):
    """What answers about one picture: a `Session`, or what stands in its place."""

    def request(self, phrase: str) -> str:
        """As of `Session`."""

    def answer(
        self, image: ImageSource, prompt: str, *, max_new_tokens: int = 128, cancel: threading.Event | None = None
    ) -> Answer:
        """As of `Session`."""


@dataclass(frozen=True)
class Seen:
    """A box of an observation.

    Attributes:
        phrase: that was asked for.
        label: what the model calls it.
        box: x1, y1, x2, y2 in float pixels of the original upright picture; one that was tracked may leave it.
        score: how sure the model was (0-1), or None.
        source: "answered" where the model said so of this very frame, "tracked" where optical flow carried it here.
        age: seconds since the frame was taken that the model has looked at.
    """

    phrase: str
    label: str
    box: Box
    score: float | None
    source: Literal["answered", "tracked"]
    age: float


@dataclass(frozen=True)
class Observation:
    """What is known of one frame.

    Attributes:
        frame: that the boxes are of.
        boxes: in the order of the phrases.
        phrases: each phrase with the status of its latest answer: "found", "refused" or "unparsed".
        answered: whether the model has looked at this frame.
        delay: seconds from the frame's capture to now; 0 for recordings, which wait.
        seconds: what the answers cost; 0 where the boxes were tracked.
    """

    frame: Frame
    boxes: tuple[Seen, ...]
    phrases: dict[str, str]
    answered: bool
    delay: float
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The observation as JSON values."""
        width, height = self.frame.picture.size
        told: dict[str, Any] = {"frame": self.frame.number, "time": self.frame.time, "stamp": self.frame.stamp}
        if self.frame.media_time is not None:
            told["media_time"] = round(self.frame.media_time, 6)
        told |= {"image": {"width": width, "height": height}, "answered": self.answered}
        told["boxes"] = [vars(seen) | {"box": list(seen.box), "age": round(seen.age, 4)} for seen in self.boxes]
        return told | {"phrases": self.phrases, "delay": round(self.delay, 4), "seconds": round(self.seconds, 4)}


@dataclass
class Figures:
    """What a watch has cost and given.

    Attributes:
        frames: that were read.
        faults: frames that could not be decoded.
        losses: how often the source was lost.
        answered: frames that the model has looked at.
        tracked: frames that boxes were carried to.
        delays: seconds from capture to answer, of the last 100,000 answers.
    """

    frames: int = 0
    faults: int = 0
    losses: int = 0
    answered: int = 0
    tracked: int = 0
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=100_000), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values, with percentiles of the delays in seconds."""
        told: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "delays"}
        ordered = sorted(self.delays)
        for share in (50, 95, 99):
            last = round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 4) if ordered else None
            told[f"delay_p{share}"] = last
        return told


class Watcher:
    """Iterates over what is seen, until the source ends.

    Cameras, streams and whatever else is live are read in a thread; a second one gives the newest frame to the model,
    never one twice, and frames in between are only tracked. A recording waits for the model.

    Examples:
        >>> from edgetune_runtime import Session
        >>> from edgetune_runtime.live.sources import source_of
        >>> from edgetune_runtime.live.watch import Watcher
        >>> with Session.load("runs/onnx-int4", cached_images=0) as session:
        ...     watcher = Watcher(session, source_of("frames"), ["the owl"], max_new_tokens=12)
        ...     [observation.frame.number for observation in watcher]
        [0, 1, 2]

    Args:
        session: what answers; a `Session` is best loaded with `cached_images=0`, for no frame comes twice.
        source: of `source_of`.
        phrases: what to find; see the attribute.
        every: least seconds from one answer's frame to the next one's.
        track: whether boxes are carried on between answers, by OpenCV.
        max_new_tokens: longest answer to a phrase.
        patient: whether a source that is not there at first is waited for.
        tell: called with a line of words when the source is lost or there again.

    Attributes:
        phrases: what to find from the next answer on; may be set while the watch goes on, by any thread.
        figures: what was done up to now.

    Raises:
        InputError: there is no phrase, or one is empty.
        MissingDependency: OpenCV is not installed, which `track` needs.
    """

    def __init__(
        self,
        session: Looking,
        source: Source,
        phrases: Sequence[str],
        *,
        every: float = 0.0,
        track: bool = False,
        max_new_tokens: int = 128,
        patient: bool = False,
        tell: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._session, self._source = session, source
        self._every, self._track, self._longest = every, track, max_new_tokens
        self._patient, self._tell = patient, tell
        self.phrases = phrases
        self.figures = Figures()
        self._stop = threading.Event()
        self._capture: Capture | None = None
        if track:
            load_opencv()

    @property
    def phrases(self) -> tuple[str, ...]:
        """As above."""
        return self._phrases

    @phrases.setter
    def phrases(self, phrases: Sequence[str]) -> None:
        if isinstance(phrases, str) or not phrases:
            raise InputError("a watch needs phrases", hint='such as ["the red cup"]')
        for phrase in phrases:
            self._session.request(phrase)  # refuses what cannot be asked
        self._phrases = tuple(dict.fromkeys(phrases))

    def stop(self) -> None:
        """End the iteration from another thread; the answer that is being made is given up."""
        self._stop.set()
        if self._capture is not None:
            self._capture.stop()

    def __iter__(self) -> Iterator[Observation]:
        """Begin to watch.

        Raises:
            SourceError: the source cannot be opened, or a recording breaks off.
            ImageError: the model takes no frames of this size.
        """
        return self._live() if self._source.live else self._recorded()

    def _look(self, frame: Frame, cancel: threading.Event | None = None) -> _Look:
        """Ask the model about a frame."""
        began = time.monotonic()
        asked = self.phrases
        image = frame.picture.rgb()
        prompts = [self._session.request(phrase) for phrase in asked]
        answers: Any = self._session.answer(image, prompts, max_new_tokens=self._longest, cancel=cancel)  # type: ignore[arg-type]
        gray = small(frame.picture) if self._track else None
        return _Look(frame, dict(zip(asked, answers, strict=True)), time.monotonic() - began, gray)

    def _recorded(self) -> Iterator[Observation]:
        """Every frame of a recording in its turn."""
        began = time.time_ns()
        latest: _Look | None = None
        flow: Flow | None = None
        for shot in self._source.shots():
            if self._stop.is_set():
                return
            if isinstance(shot, Fault):
                self.figures.faults += 1
                continue
            at = shot.media_time or 0.0
            frame = Frame(self.figures.frames, shot.picture, shot.captured, began + round(at * 1e9), at)
            self.figures.frames += 1
            if latest is None or at - (latest.frame.media_time or 0.0) >= self._every - 1e-6:
                latest = self._look(frame, self._stop)
                flow = latest.flow()
                self.figures.answered += 1
                yield latest.answered(0.0)
            elif flow is not None and frame.picture.size == latest.frame.picture.size:
                flow.step(small(frame.picture))
                self.figures.tracked += 1
                yield latest.tracked(frame, flow, age=at - (latest.frame.media_time or 0.0), delay=0.0)

    def _live(self) -> Iterator[Observation]:
        """The newest frames of a camera, as they come."""
        self._capture = capture = Capture(self._source, tell=self._tell, patient=self._patient)
        with capture, _Eyes(self._look, capture, self._every, self._stop) as eyes:
            latest: _Look | None = None
            flow: Flow | None = None
            trail: deque[tuple[Frame, Gray]] = deque()
            seen = -1
            while True:
                look, frame = eyes.wait(after=seen, frames=self._track)
                if capture.losses > self.figures.losses:
                    flow = None  # what was there before may be anywhere now
                self._count(capture)
                if look is not None:
                    latest = look
                    self.figures.answered += 1
                    observation = look.answered(time.monotonic() - look.frame.captured)
                    self.figures.delays.append(observation.delay)
                    yield observation
                    flow = look.flow()
                    if flow is not None:
                        later = [step for step in trail if step[0].number > look.frame.number]
                        for older, gray in _few(later):
                            _step(flow, look, older, gray)
                if frame is not None:
                    seen = frame.number
                    gray = small(frame.picture)
                    trail.append((frame, gray))
                    if latest is not None and flow is not None and frame.number > latest.frame.number:
                        _step(flow, latest, frame, gray)
                        self.figures.tracked += 1
                        now = time.monotonic()
                        age = now - latest.frame.captured
                        yield latest.tracked(frame, flow, age=age, delay=now - frame.captured)
                    _shorten(trail, min(eyes.oldest, frame.number - _SPARE))
                if look is None and frame is None:
                    return

    def _count(self, capture: Capture) -> None:
        self.figures.frames, self.figures.faults = capture.frames, capture.faults
        self.figures.losses = capture.losses


def _step(flow: Flow, look: _Look, frame: Frame, gray: Gray) -> None:
    """Go on to a frame; a camera that has changed its size has lost the boxes."""
    if frame.picture.size != look.frame.picture.size:
        flow.boxes = [None] * len(flow.boxes)
    flow.step(gray)


def _few(steps: list[tuple[Frame, Gray]]) -> list[tuple[Frame, Gray]]:
    """Some of the steps, the last among them: small ones are safe, and many of them are late."""
    stride = -(-len(steps) // _STEPS)
    return steps[::-1][:: stride or 1][::-1]


def _shorten(trail: deque[tuple[Frame, Gray]], after: int) -> None:
    """Keep the frames after one; of very many, every second, for an answer that takes minutes needs no small steps."""
    while trail and trail[0][0].number <= after:
        trail.popleft()
    if len(trail) > _TRAIL:
        kept = list(trail)[1::2]
        trail.clear()
        trail.extend(kept)


@dataclass(frozen=True)
class _Look:
    """What a model said of a frame, and the small picture from which its boxes go on."""

    frame: Frame
    answers: dict[str, Answer]
    seconds: float
    gray: Gray | None

    def _boxes(self) -> list[tuple[str, Any]]:
        return [(phrase, item) for phrase, answer in self.answers.items() for item in answer.detections]

    def flow(self) -> Flow | None:
        """What carries the boxes on, if they are to be."""
        if self.gray is None:
            return None
        return Flow([item.box for _, item in self._boxes()], self.frame.picture.size, self.gray)

    def answered(self, delay: float) -> Observation:
        """The observation of the frame itself."""
        boxes = [Seen(phrase, item.label, item.box, item.score, "answered", delay) for phrase, item in self._boxes()]
        return Observation(self.frame, tuple(boxes), self._statuses(), True, delay, self.seconds)

    def tracked(self, frame: Frame, flow: Flow, *, age: float, delay: float) -> Observation:
        """The observation of a later frame."""
        boxes = [
            Seen(phrase, item.label, box, item.score, "tracked", age)
            for (phrase, item), box in zip(self._boxes(), flow.boxes, strict=True)
            if box is not None
        ]
        return Observation(frame, tuple(boxes), self._statuses(), False, delay)

    def _statuses(self) -> dict[str, str]:
        return {phrase: answer.status for phrase, answer in self.answers.items()}


class _Eyes:
    """The thread in which the model looks at the newest frame."""

    def __init__(
        self, look: Callable[[Frame, threading.Event], _Look], capture: Capture, every: float, stop: threading.Event
    ) -> None:
        self._look, self._capture, self._every, self._stop = look, capture, every, stop
        self._looks: deque[_Look] = deque()
        self._error: BaseException | None = None
        self._done = self._busy = False
        self.looking_at = -1  # number of the latest frame that the model has begun to look at
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __enter__(self) -> _Eyes:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._capture.stop()
        self._thread.join()

    @property
    def oldest(self) -> int:
        """Number of the oldest frame of which an answer is still to come."""
        with self._capture.changed:
            newest = self._capture.latest
            if self._looks:
                return self._looks[0].frame.number
            return self.looking_at if self._busy or newest is None else newest.number

    def wait(self, *, after: int, frames: bool) -> tuple[_Look | None, Frame | None]:
        """Wait for an answer, or where `frames` is set for a frame after this number; neither at the end."""
        with self._capture.changed:
            newest: Frame | None = None

            def something() -> bool:
                nonlocal newest
                newest = self._capture.latest if frames else None
                fresh = newest is not None and newest.number > after
                return bool(self._looks) or fresh or self._done

            self._capture.changed.wait_for(something)
            if not self._looks and self._error is not None:
                raise self._error
            look = self._looks.popleft() if self._looks else None
            return look, newest if newest is not None and newest.number > after else None

    def _run(self) -> None:
        try:
            last: Frame | None = None
            while not self._stop.is_set():
                frame = self._capture.newest(self.looking_at)
                if frame is None:
                    return
                if last is not None and (early := last.captured + self._every - frame.captured) > 0:
                    if self._capture.ended:
                        return
                    self._stop.wait(max(early, 0.001))
                    continue
                self._busy, last, self.looking_at = True, frame, frame.number
                look = self._look(frame, self._stop)
                with self._capture.changed:
                    self._busy = False
                    self._looks.append(look)
                    self._capture.changed.notify_all()
        except Cancelled:
            pass
        except BaseException as error:  # whoever iterates raises it
            self._error = error
        finally:
            with self._capture.changed:
                self._done = True
                self._capture.changed.notify_all()
