"""A worker that ends badly becomes a reason, whatever the way it ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetune_runtime.bench.launch import Failure, run_worker
from edgetune_runtime.bench.matrix import report_lines


def launch(
    tmp_path: Path, code: str, *, stall_s: float = 60.0, heard: list[int] | None = None, threads: int | None = 2
) -> object:
    """Run Python code as a worker; `output` and `threads` are set for it from the arguments a worker gets."""
    script = "import sys\nargs = dict(zip(sys.argv[1::2], sys.argv[2::2]))\noutput = args['--output']\n" + code
    return run_worker(
        [sys.executable, "-c", script],
        output=tmp_path / "out.json",
        log=tmp_path / "log.txt",
        threads=threads,
        stall_s=stall_s,
        progress=(heard if heard is not None else []).append,
    )


def test_a_result_comes_back_with_its_progress(tmp_path: Path) -> None:
    heard: list[int] = []
    code = """
import json, os
print(1, flush=True)
print("an engine's own chatter")
print(2)
json.dump({"omp": os.environ["OMP_NUM_THREADS"], "threads": args["--threads"]}, open(output, "w"))
"""
    assert launch(tmp_path, code, heard=heard) == {"omp": "2", "threads": "2"}
    assert heard == [1, 2]


def test_without_a_number_of_threads_the_worker_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import json, os; json.dump([os.getenv('OMP_NUM_THREADS'), '--threads' in sys.argv], open(output, 'w'))"
    assert launch(tmp_path, code, threads=None) == [None, False]


def test_the_error_line_of_a_worker_is_the_reason(tmp_path: Path) -> None:
    code = "print('error: no engine', file=sys.stderr); print('hint: install it', file=sys.stderr); sys.exit(3)"
    assert launch(tmp_path, code) == Failure("no engine (hint: install it)", 3)


def test_a_crash_is_named_by_the_last_line_of_its_traceback(tmp_path: Path) -> None:
    assert launch(tmp_path, "raise MemoryError('bad allocation')") == Failure("MemoryError: bad allocation", 1)


def test_a_silent_exit_is_named_by_its_code(tmp_path: Path) -> None:
    assert launch(tmp_path, "sys.exit(7)") == Failure("exit code 7 without a message", 7)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSEGV"])
def test_a_killed_worker_is_named_by_its_signal(tmp_path: Path, signal: str) -> None:
    failure = launch(tmp_path, f"import os, signal; os.kill(os.getpid(), signal.{signal})")
    assert isinstance(failure, Failure)
    assert signal in failure.reason
    assert failure.exit_code < 0


def test_a_worker_that_says_nothing_is_stopped(tmp_path: Path) -> None:
    failure = launch(tmp_path, "import time; time.sleep(600)", stall_s=1.0)
    assert failure == Failure("no answer for 1 s, stopped", -9)


def test_an_exit_without_a_result_is_a_failure_even_with_an_old_result_in_place(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")
    failure = launch(tmp_path, "pass")
    assert isinstance(failure, Failure)
    assert failure.exit_code == 0
    assert "result" in failure.reason


def test_a_broken_result_is_a_failure(tmp_path: Path) -> None:
    failure = launch(tmp_path, "open(output, 'w').write('{\"rows\": [')")
    assert isinstance(failure, Failure)
    assert "result" in failure.reason


def test_progress_off_a_terminal_is_a_line_at_a_time() -> None:
    said: list[str] = []
    with report_lines(said.append, every_s=0.0)("int4", 48, "record") as progress:
        for done in (1, 2, 48):
            progress(done)
    assert said == ["int4: 1 of 48 records done", "int4: 2 of 48 records done", "int4: 48 of 48 records done"]
    with report_lines(said.append, every_s=3600.0)("int4", 48, "record") as progress:
        progress(49)
    assert len(said) == 3
