"""Run one worker process and bring back its JSON, or the reason why there is none."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
    """Why a worker gave no result. `exit_code` is negative for a signal, as in `subprocess`."""

    reason: str
    exit_code: int


def run_worker(
    command: Sequence[str],
    *,
    output: Path,
    log: Path,
    threads: int | None,
    stall_s: float,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any] | Failure:
    """Run `command` to its end and return the JSON object it wrote to `output`.

    The worker prints the number of answers so far, one a line, on its standard output; `progress` gets each. Its
    standard error goes to `log`. A worker that prints nothing for `stall_s` seconds is killed. Without `threads` the
    engine chooses. Nothing raises but Ctrl-C, which ends the worker first: a row that fails must not take the others
    down.
    """
    # A measurement must not depend on a network, nor warn about the launcher's fork.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    asked: list[str] = []
    if threads is not None:
        environment |= {name: str(threads) for name in _THREAD_VARIABLES}
        asked = ["--threads", str(threads)]
    output.unlink(missing_ok=True)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--output", str(output), *asked, "--progress"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
        try:
            stalled = _follow(process, stall_s, progress)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    code = process.returncode
    if stalled:
        return Failure(f"no answer for {stall_s:g} s, stopped", code)
    if code != 0:
        return Failure(_reason(code, log), code)
    try:
        result: dict[str, Any] = json.loads(output.read_text())
    except (OSError, ValueError) as error:
        return Failure(f"ended without a readable result: {error}", code)
    return result


def _follow(process: subprocess.Popen[bytes], stall_s: float, progress: Callable[[int], object]) -> bool:
    """Read progress until the worker closes its output and exits; True when it stalled and was killed."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        heard = time.monotonic()
        pending = b""
        while True:
            if not selector.select(timeout=max(0.0, heard + stall_s - time.monotonic())):
                process.kill()
                return True
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            heard = time.monotonic()
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                if line.strip().isdigit():
                    progress(int(line))
    try:
        process.wait(timeout=stall_s)  # an engine's teardown can hang after the last answer
    except subprocess.TimeoutExpired:
        process.kill()
        return True
    return False


def _reason(code: int, log: Path) -> str:
    """One line from the worker's standard error, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        cause = " (often: out of memory)" if -code == signal.SIGKILL else ""
        return f"killed by {name}{cause}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    clear = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    if clear:
        return clear[-1] + (f" ({hints[-1]})" if hints else "")
    return lines[-1] if lines else f"exit code {code} without a message"
