"""A function in a process of its own: what it returns and raises comes back, and signals reach it."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune_core.processes import apart
from edgetune_runtime.errors import EdgetuneError, InputError
from edgetune_runtime.signals import Terminated
from packages import search, write_package
from processes import start, wait_until

JOBS = """
import os, signal, time
from pathlib import Path
from edgetune_runtime.errors import InputError

def pair(left, *, right):
    print("working")
    return left, right, os.getpid()

def refuse():
    raise InputError("no such thing", hint="look elsewhere")

def end(code):
    os._exit(code)

def stop(number):
    os.kill(os.getpid(), number)
    time.sleep(30)

def work(folder):
    try:
        Path(folder, "began").touch()
        time.sleep(30)
        Path(folder, "finished").touch()
    finally:
        time.sleep(0.5)
        Path(folder, "cleaned").touch()
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that the child can import, too."""
    search(write_package(tmp_path / "site", {}, {"jobs.py": JOBS}), monkeypatch)
    return importlib.import_module("jobs")


def test_the_result_is_another_process_s_and_its_words_go_to_stderr(
    jobs: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    left, right, process = apart(jobs.pair, 1, right=Path("x"))
    assert (left, right) == (1, Path("x")) and process != jobs.pair(1, right=1)[2]
    assert capfd.readouterr().err == "working\n"


def test_an_error_comes_back_with_its_hint_and_a_crash_is_one(jobs: Any) -> None:
    with pytest.raises(InputError, match="no such thing") as caught:
        apart(jobs.refuse)
    assert caught.value.hint == "look elsewhere"
    with pytest.raises(EdgetuneError, match=r"jobs\.end: its process ended with code 7"):
        apart(jobs.end, 7)


def test_a_process_that_is_told_to_end_ends_its_caller_in_the_same_way(jobs: Any) -> None:
    with pytest.raises(Terminated):
        apart(jobs.stop, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught:
        apart(jobs.end, 130)
    assert caught.type is KeyboardInterrupt


CALLER = """
import jobs, sys
from edgetune_core.processes import apart
from edgetune_runtime.signals import *
try:
    with sigterm_raises():
        apart(jobs.work, sys.argv[1])
except Terminated as end:
    sys.exit(end.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "code", "both"),
    [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, False), (signal.SIGINT, 130, True)],
    ids=["SIGTERM", "SIGINT", "Ctrl-C"],
)
def test_a_signal_is_passed_on_and_the_child_cleans_up_first(
    jobs: Any, tmp_path: Path, number: signal.Signals, code: int, both: bool
) -> None:
    """The caller alone is told to end, or it and its child are, as a terminal does it."""
    process = start([sys.executable, "-c", CALLER, tmp_path], stderr=subprocess.PIPE, start_new_session=True)
    wait_until(process, (tmp_path / "began").exists)
    (os.killpg if both else os.kill)(process.pid, number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (code, "")
    assert (tmp_path / "cleaned").exists() and not (tmp_path / "finished").exists()
