"""SIGTERM ends a program as Ctrl-C does: what it was writing is removed and its child processes end.

Service managers, schedulers and `torchrun` stop a process with SIGTERM, which by default ends Python on the spot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived. A kind of KeyboardInterrupt, so that whatever cleans up after Ctrl-C does it here, too."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` in the main thread when SIGTERM arrives within the block; a later SIGTERM is ignored.

    Nothing changes outside the main thread, where Python allows no handlers, and where SIGTERM is ignored already.
    """
    before = _raise_at_first(signal.SIGTERM)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_once() -> None:
    """From now on SIGINT or SIGTERM, whichever comes first, raises in the main thread, and later ones are ignored.

    For a process that is waited for with `wait_for`: Ctrl-C reaches it twice, and must not interrupt its cleaning up.
    """
    _raise_at_first(signal.SIGINT, signal.SIGTERM)


def _raise_at_first(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Set handlers for signals that are not ignored already, and return those that were there before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    owner = os.getpid()
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child, such as a data loader's worker, has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)  # or a second one would interrupt the cleaning up
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in heeded:
        signal.signal(number, end)
    return heeded


def wait_for(process: subprocess.Popen[Any]) -> int:
    """Return the exit code of a child, which is given the time to clean up when this process is told to end.

    SIGINT and SIGTERM are passed on. At Ctrl-C the terminal sends SIGINT to both, so a child that is still cleaning up
    gets it twice; `end_once` sees to that.
    """
    try:
        return process.wait()
    except KeyboardInterrupt as end:
        process.send_signal(signal.SIGTERM if isinstance(end, Terminated) else signal.SIGINT)
        process.wait()
        raise
