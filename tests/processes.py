"""Processes that tests start, and some that they stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from warm import FRESH


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """Start a process that Ctrl-C and SIGTERM reach, also when the tests run where they are ignored.

    A child inherits what its parent ignores, and shells let background jobs ignore SIGINT. It is a fresh interpreter
    and no fork of one that serves: what is killed has to be the process itself.

    Args:
        command: the program and its arguments.
        options: of `subprocess.Popen`.
    """

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    words = [str(FRESH) if word == sys.executable else word for word in command]
    return subprocess.Popen(words, text=True, preexec_fn=listen, **options)


def on_one_core() -> None:
    """Confine a process that is about to start, and its children, to one core; what `preexec_fn` calls.

    Thread pools take all cores that they may use, and where other tests compute on these, pools wait for each other
    for most of the time.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


def run_as_printed(command: Sequence[str], folder: Path) -> str:
    """Run a page's commands in a folder and return what they print; `edgetune` is that of this environment.

    Raises:
        AssertionError: they ended with another code than 0.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        preexec_fn=on_one_core,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Wait until something is so, which the process sees to; it must not end before.

    Raises:
        AssertionError: it ended.
    """
    while not ready():
        assert process.poll() is None, f"the process ended with exit code {process.returncode}"
        time.sleep(0.002)


def is_whole(path: Path) -> bool:
    """Whether a JSON file is there and written to its end."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
