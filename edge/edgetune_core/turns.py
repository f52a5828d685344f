"""Functions that run in turns, so that what many of them need is made ready once for all of them.

Each function runs in a thread of its own, one at a time. Where it needs a resource it waits; when all wait, the first
resource in order is made ready, and those that wait for it go on until they need another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)
T = TypeVar("T")


class _Stopped(BaseException):
    """Ends a function whose turn does not come any more."""


class _Job(Generic[R, T]):
    """A function on its way.

    Attributes:
        wants: what it waits for; None when it waits no more.
        go: released when it may go on.
        results: what it returned, when it has.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self.call, self.go = call, threading.Semaphore(0)
        self.wants: R | None = None
        self.results: list[T] = []
        self.error: BaseException | None = None


class Turns(Generic[R]):
    """Resources that functions come to in about the same order.

    Args:
        order: all resources, in about the order in which functions come to them; of those that are waited for, the
            first is made ready.
        ready: makes a resource ready while the returned context is entered.

    Examples:
        >>> from contextlib import contextmanager
        >>> @contextmanager
        ... def page(number):
        ...     print("page", number)
        ...     yield
        >>> turns = Turns([1, 2], page)
        >>> def read(name):
        ...     for number in (1, 2):
        ...         turns.wait(number)
        ...         print(name, "reads", number)
        ...     return name
        >>> turns.run([lambda: read("Ann"), lambda: read("Ben")])
        page 1
        Ann reads 1
        Ben reads 1
        page 2
        Ann reads 2
        Ben reads 2
        ['Ann', 'Ben']
    """

    def __init__(self, order: Sequence[R], ready: Callable[[R], AbstractContextManager[None]]) -> None:
        self._order = {resource: number for number, resource in enumerate(order)}
        self._ready = ready
        self._back = threading.Semaphore(0)
        self._mine = threading.local()
        self._stopped = False

    def wait(self, resource: R) -> None:
        """Return when a resource is ready; it stays so until the function waits again. Only for what `run` calls."""
        job = self._mine.job
        job.wants = resource
        self._back.release()
        job.go.acquire()
        if self._stopped:
            raise _Stopped

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Call functions in turns and return what they return, in their order; what one raises ends them all."""
        jobs: list[_Job[R, T]] = [_Job(call) for call in calls]
        threads = [threading.Thread(target=self._work, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            for job in jobs:
                self._give(job)
            # Those behind catch up with the others first, which wait where all of them will come.
            while wanted := {job.wants for job in jobs if job.wants is not None}:
                resource = min(wanted, key=self._order.__getitem__)
                with self._ready(resource):
                    for job in [job for job in jobs if job.wants == resource]:
                        self._give(job)
        finally:
            self._stopped = True
            for job in jobs:
                job.go.release()
            for thread in threads:
                thread.join()
        return [result for job in jobs for result in job.results]

    def _give(self, job: _Job[R, T]) -> None:
        """Let a function go on until it waits or ends."""
        job.wants = None
        job.go.release()
        self._back.acquire()
        if job.error is not None:
            raise job.error

    def _work(self, job: _Job[R, T]) -> None:
        self._mine.job = job
        job.go.acquire()
        try:
            if not self._stopped:
                job.results.append(job.call())
        except _Stopped:
            pass
        except BaseException as error:
            job.error = error
        finally:
            self._back.release()
