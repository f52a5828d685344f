"""Try an engine for real, in a child process where a crash of native code harms nothing."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from typing import NamedTuple

TIMEOUT_S = 180


class Probe(NamedTuple):
    """An engine to try: the module to import and the device or execution provider to use."""

    module: str
    device: str


def probe_engine(probe: Probe) -> tuple[bool, str]:
    """Return whether the engine works here, and one line that says what it is or what went wrong."""
    if importlib.util.find_spec(probe.module) is None:
        return False, f"{probe.module} is not installed"
    return told_by("edgetune.doctor.trial", *probe)


def told_by(trial: str, *arguments: str) -> tuple[bool, str]:
    """Run a module as a program and return whether it ended well, and the last line that it printed.

    Of one that failed that is what it said on stderr, or how it ended.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", trial, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {TIMEOUT_S} s"
    if child.returncode < 0:
        return False, f"crashed with {signal.Signals(-child.returncode).name}"
    lines = (child.stdout if child.returncode == 0 else child.stderr).strip().splitlines()
    if child.returncode == 0:
        return True, lines[-1] if lines else ""
    return False, lines[-1] if lines else f"exit code {child.returncode} without a word"
