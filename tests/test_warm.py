"""Processes that start warm are to their caller what fresh ones are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from warm import FRESH

pytest.importorskip("torch", reason="without torch there is nothing to start warm with")


def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words], capture_output=True, text=True, check=False, env={**os.environ, **variables}, cwd="/"
    )


@pytest.mark.parametrize("words", [["--version"], ["nonsense"], ["data", "check", "missing.jsonl"]])
def test_streams_and_exit_codes_are_those_of_a_fresh_interpreter(words: list[str]) -> None:
    warm, fresh = run(sys.executable, "-m", "edgetune", *words), run(FRESH, "-m", "edgetune", *words)
    assert (warm.returncode, warm.stdout, warm.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_what_is_read_when_a_process_starts_is_honoured() -> None:
    told = run(sys.executable, "-m", "edgetune", "--version", PYTHONPROFILEIMPORTTIME="1").stderr
    assert "import time:" in told


def test_other_variables_reach_the_program() -> None:
    asked = {"_EDGETUNE_COMPLETE": "bash_source"}
    warm, fresh = (run(python, "-m", "edgetune", **asked).stdout for python in (sys.executable, str(FRESH)))
    assert warm == fresh and "complete" in warm
