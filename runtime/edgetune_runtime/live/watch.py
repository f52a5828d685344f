"""A session that looks at the newest frame, again and again, and boxes that are carried on in between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from edgetune_runtime.answer import Answer
from edgetune_runtime.errors import Cancelled, InputError
from edgetune_runtime.images.load import ImageSource
from edgetune_runtime.live.answers import Answers, Look
from edgetune_runtime.live.capture import Capture, check_seen, tell_fault
from edgetune_runtime.live.flow import Flow, load_opencv, small
from edgetune_runtime.live.frames import Frame, Gray
from edgetune_runtime.live.observations import Figures, Observation
from edgetune_runtime.live.sources import Fault, Source

_TRAIL = 128
"""Small pictures that are kept while an answer is made, to carry its boxes along: 10 MB at most."""
_STEPS = 16
"""Steps in which the boxes of an answer catch up with the newest frame."""
_SPARE = 8
"""Small pictures that are kept in any case: the model may be about to look at one of those frames."""


class Finder(Protocol):
    """What answers about one picture: a `Session`, or what stands in its place."""

    def request(self, phrase: str) -> str:
        """As of `Session`."""

    def answer(
        self,
        image: ImageSource,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        cancel: threading.Event | None = None,
        earlier: Sequence[Answer | None] = (),
    ) -> Answer:
        """As of `Session`."""


class _Step(NamedTuple):
    """What tracking keeps of a frame: not its pixels, of which a second of film has 180 MB."""

    number: int
    size: tuple[int, int]
    gray: Gray


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
        session: Finder,
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
        self._said: dict[str, Answer] = {}  # about the frame before, which the next one mostly looks like
        self._stop = threading.Event()
        self._begun = False
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
            InputError: it has begun before.
        """
        if self._begun:
            raise InputError("a watcher watches once", hint="make another one")
        self._begun = True
        return self._live() if self._source.live else self._recorded()

    def _look(self, frame: Frame, cancel: threading.Event) -> Look:
        """Ask the model about a frame."""
        began = time.monotonic()
        asked = self.phrases
        image = frame.picture.rgb()
        prompts = [self._session.request(phrase) for phrase in asked]
        answers: Any = self._session.answer(
            image,
            prompts,  # type: ignore[arg-type]
            max_new_tokens=self._longest,
            cancel=cancel,
            earlier=[self._said.get(phrase) for phrase in asked],
        )
        self._said = dict(zip(asked, answers, strict=True))
        gray = small(frame.picture) if self._track else None
        return Look(frame, dict(self._said), time.monotonic() - began, gray)

    def _recorded(self) -> Iterator[Observation]:
        """Every frame of a recording in its turn."""
        began = time.time_ns()
        latest: Look | None = None
        flow: Flow | None = None
        for shot in self._source.shots():
            if self._stop.is_set():
                return
            if isinstance(shot, Fault):
                self.figures.faults += 1
                tell_fault(self._tell, self._source, self.figures.faults, shot)
                continue
            at = shot.media_time or 0.0
            frame = Frame(self.figures.frames, shot.picture, shot.captured, began + round(at * 1e9), at)
            self.figures.frames += 1
            since = None if latest is None else at - (latest.frame.media_time or 0.0)
            # Time goes back where recordings were joined.
            if latest is None or since is None or since < 0 or since >= self._every - 1e-6:
                try:
                    latest = self._look(frame, self._stop)
                except Cancelled:
                    return
                flow = latest.flow()
                self.figures.answered += 1
                yield latest.answered(0.0)
            elif flow is not None:
                _go_on(flow, frame.picture.size, small(frame.picture), latest)
                self.figures.tracked += 1
                yield latest.tracked(frame, flow, age=since, delay=0.0)
        check_seen(self._source, self.figures.frames, self.figures.faults)

    def _live(self) -> Iterator[Observation]:
        """The newest frames of a camera, as they come."""
        self._capture = capture = Capture(self._source, tell=self._tell, patient=self._patient)
        with capture, Answers(self._look, capture, self._every, self._stop) as answers:
            latest: Look | None = None
            flow: Flow | None = None
            trail: deque[_Step] = deque()
            seen, first = -1, 0  # the last frame that was seen, and the first since the source was lost
            while True:
                look, frame = answers.wait(after=seen, frames=self._track)
                if capture.losses > self.figures.losses:
                    first, flow = seen + 1, None  # what was there before may be anywhere now
                    trail.clear()
                self._count(capture)
                if look is not None:
                    latest = look
                    self.figures.answered += 1
                    observation = look.answered(time.monotonic() - look.frame.captured)
                    self.figures.delays.append(observation.delay)
                    yield observation
                    flow = look.flow() if look.frame.number >= first else None
                    if flow is not None:
                        for step in _few([each for each in trail if each.number > look.frame.number]):
                            _go_on(flow, step.size, step.gray, look)
                if frame is not None:
                    seen = frame.number
                    step = _Step(seen, frame.picture.size, small(frame.picture))
                    trail.append(step)
                    if latest is not None and flow is not None and seen > latest.frame.number:
                        _go_on(flow, step.size, step.gray, latest)
                        self.figures.tracked += 1
                        now = time.monotonic()
                        age = now - latest.frame.captured
                        yield latest.tracked(frame, flow, age=age, delay=now - frame.captured)
                    _shorten(trail, min(answers.oldest, seen - _SPARE))
                if look is None and frame is None:
                    return

    def _count(self, capture: Capture) -> None:
        self.figures.frames, self.figures.faults = capture.frames, capture.faults
        self.figures.losses = capture.losses


def _go_on(flow: Flow, size: tuple[int, int], gray: Gray, look: Look) -> None:
    """Carry boxes to a frame; a camera that has changed its size has lost them."""
    if size != look.frame.picture.size:
        flow.boxes = [None] * len(flow.boxes)
    flow.step(gray)


def _few(steps: list[_Step]) -> list[_Step]:
    """Some of the steps, the last among them: small ones are safe, and many of them are late."""
    stride = -(-len(steps) // _STEPS)
    return steps[::-1][:: stride or 1][::-1]


def _shorten(trail: deque[_Step], after: int) -> None:
    """Keep the frames after one; of very many, every second, for an answer that takes minutes needs no small steps."""
    while trail and trail[0].number <= after:
        trail.popleft()
    if len(trail) > _TRAIL:
        kept = list(trail)[1::2]
        trail.clear()
        trail.extend(kept)
