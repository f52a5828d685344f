"""One bundle behind a queue: a thread of its own asks the session, one request after the other."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from edgetune_runtime.answer import Answer, Stream
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import Cancelled
from edgetune_runtime.images.load import ImageSource
from edgetune_runtime.serve.refusal import Refusal

T = TypeVar("T")

_END = object()


class Answering(Protocol):
    """What answers: a `Session`, or a fleet in its place."""

    @property
    def bundle(self) -> Bundle:
        """What is served."""

    def request(self, phrase: str) -> str:
        """As of `Session`."""

    def answer(
        self, image: ImageSource, prompt: str, *, max_new_tokens: int = 128, cancel: threading.Event | None = None
    ) -> Answer:
        """As of `Session`."""

    def stream(
        self,
        image: ImageSource | None,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        probabilities: bool = False,
        keep_control: bool = False,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """As of `Session`."""

    def close(self) -> None:
        """Give back what is held."""


@dataclass
class Turn:
    """What a request has of its turn: the session, whether it is still wanted, and how long it waited (seconds)."""

    session: Answering
    cancel: threading.Event
    waited: float


@dataclass
class _Job:
    """Work for a thread, and where its pieces go: called in the thread, for whoever waits in an event loop."""

    work: Callable[[Turn], Iterator[Any]]
    tell: Callable[[Any, BaseException | None], None]
    cancel: threading.Event = field(default_factory=threading.Event)
    asked: float = field(default_factory=time.perf_counter)
    begun: bool = False
    counted: bool = True


class Model:
    """A session and its queue.

    Examples:
        >>> import asyncio
        >>> from edgetune_runtime import Session
        >>> from edgetune_runtime.serve.model import Model
        >>> model = Model("owls", Session.load("runs/onnx-int4"), queue_limit=4)
        >>> async def ask():
        ...     return [piece async for piece in model.run(lambda turn: iter(["a", "b"]))]
        >>> asyncio.run(ask())
        ['a', 'b']
        >>> model.close()

    Args:
        name: what clients call it.
        session: what answers; closed with the model.
        queue_limit: requests that may wait behind those that are answered.
        at_a_time: requests that are answered at a time; a `Session` has one sequence and takes one.

    Attributes:
        pending: requests that wait or are answered.
        changed: called with that number when it changes.
    """

    def __init__(self, name: str, session: Answering, *, queue_limit: int, at_a_time: int = 1) -> None:
        self.name, self.session = name, session
        self.started = int(time.time())
        self.pending = 0  # touched in the event loop alone
        self.changed: Callable[[int], None] = lambda pending: None
        self._limit, self._at_a_time = queue_limit, at_a_time
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # between a last job and the end
        self._closed = False
        self._usual = 1.0  # seconds of an answer, of late
        numbers = range(at_a_time)
        self._threads = [threading.Thread(target=self._serve, name=f"{name} {n}", daemon=True) for n in numbers]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[Turn], Iterator[T]]) -> AsyncGenerator[T]:
        """Give what `work` yields in the model's thread, piece by piece.

        Whoever stops reading, or is cancelled, ends the work before its next token.

        Raises:
            Refusal: the queue is full, or the model was closed.
        """
        if self.pending >= self._limit + self._at_a_time:
            wait = max(1, math.ceil(self._usual * self.pending / self._at_a_time))
            raise Refusal(
                429,
                f"{self._limit} requests wait already",
                hint=f"try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        loop, told = asyncio.get_running_loop(), asyncio.Queue[tuple[Any, BaseException | None]]()

        def deliver(piece: Any, error: BaseException | None) -> None:
            if error is not None or piece is _END:
                self._leave(job)
            told.put_nowait((piece, error))

        def tell(piece: Any, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(deliver, piece, error)

        job = _Job(work, tell)
        with self._lock:
            if self._closed:
                raise Refusal(503, "the server is about to end")
            self._jobs.put(job)
        self.pending += 1
        self.changed(self.pending)
        try:
            while True:
                piece, error = await told.get()
                if error is not None:
                    raise error
                if piece is _END:
                    return
                yield piece
        finally:
            job.cancel.set()
            if not job.begun:  # nothing was done for it yet, and nothing will be
                self._leave(job)

    def _leave(self, job: _Job) -> None:
        """A request no longer waits and is no longer answered."""
        if job.counted:
            job.counted = False
            self.pending -= 1
            self.changed(self.pending)

    def _serve(self) -> None:
        """Work through the queue; whatever a request does wrong ends that request alone."""
        while (job := self._jobs.get()) is not None:
            self._answer(job)
            del job  # the picture and the body of a request are not kept until the next one

    def _answer(self, job: _Job) -> None:
        began = time.perf_counter()
        job.begun, error = True, None
        try:
            if job.cancel.is_set():
                raise Cancelled("nobody waits for the answer any more")
            for piece in job.work(Turn(self.session, job.cancel, began - job.asked)):
                job.tell(piece, None)
        except BaseException as caught:  # the thread has to outlive all of them
            error = caught
        if not isinstance(error, Cancelled):
            self._usual = 0.8 * self._usual + 0.2 * (time.perf_counter() - began)
        try:
            job.tell(_END, error)
        except RuntimeError:  # the loop of whoever asked has ended
            pass
        finally:
            del error  # which holds this frame, and this frame it

    def close(self) -> None:
        """End the threads after the requests that they answer, and give the session's memory back."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self.session.close()
