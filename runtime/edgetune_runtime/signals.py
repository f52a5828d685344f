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
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child, such as a data loader's worker, has nothing to clean up
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or a second one would interrupt the cleaning up
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_for(process: subprocess.Popen[Any]) -> int:
    """Return the exit code of a child, which is given the time to clean up when this process is told to end.

    Ctrl-C reaches a child from the terminal; SIGTERM is passed on to it.
    """
    try:
        return process.wait()
    except KeyboardInterrupt as end:
        if isinstance(end, Terminated):
            process.terminate()
        process.wait()
        raise
