"""Process measurements against the operating system's own tools and against work of known size."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil
import pytest

from edgetune_runtime.timing import CpuShare, GpuMemory, Timings, peak_rss, process_age


def test_process_age_is_what_the_system_says() -> None:
    assert process_age() == pytest.approx(time.time() - psutil.Process().create_time(), abs=1.0)


def test_peak_memory_is_this_program_s_alone() -> None:
    """A worker must not be charged for the launcher that forked it, which getrusage on Linux would do."""
    ballast = bytearray(b"x") * 400_000_000
    code = """
import json
from edgetune_runtime.timing import peak_rss
before = peak_rss()
ballast = bytearray(b"x") * 150_000_000
print(json.dumps([before, peak_rss()]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = json.loads(out)
    assert before < 100_000_000
    assert 150_000_000 <= after - before < 200_000_000
    assert peak_rss() > len(ballast)


def test_other_processes_work_is_counted() -> None:
    share = CpuShare()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1.0: pass"], check=True)
    others = share.others()
    assert others is not None
    assert others > 0.1 / (psutil.cpu_count() or 1)


def test_decode_speed_leaves_the_prefilled_token_out() -> None:
    assert Timings(0, 0, 0, decode=2.0, total=2.0, tokens=9).tokens_per_second == 4.0
    assert Timings(0, 0, 0, decode=0.0, total=1.0, tokens=1).tokens_per_second is None


def test_gpu_memory_without_a_driver_is_unknown_and_not_zero() -> None:
    memory = GpuMemory()
    memory.sample()
    assert (memory.peak is None) == (not _driver_present())


def _driver_present() -> bool:
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
