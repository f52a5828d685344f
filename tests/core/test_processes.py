"""A function in a process of its own: what it returns and raises comes back, and signals reach it."""

from __future__ import annotations

import importlib
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
    finally:
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


def test_sigterm_is_passed_on_and_the_child_cleans_up_first(jobs: Any, tmp_path: Path) -> None:
    code = (
        "import jobs, sys\nfrom edgetune_core.processes import apart\nfrom edgetune_runtime.signals import *\n"
        "try:\n    with sigterm_raises():\n        apart(jobs.work, sys.argv[1])\n"
        "except Terminated as end:\n    sys.exit(end.exit_code)\n"
    )
    process = start([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE)
    wait_until(process, (tmp_path / "began").exists)
    process.terminate()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (143, "")
    assert (tmp_path / "cleaned").exists()
