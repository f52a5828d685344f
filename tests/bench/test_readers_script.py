"""The scripts of `make test-readers`, as far as this environment's own engine goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "readers"


def run(work: Path, readers: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(SCRIPTS / "run_readers.py"),
        "--work",
        str(work),
        "--environments",
        str(work / "env"),
    ]
    asked = ["--families", "qwen2_5_vl", "--readers", readers]
    return subprocess.run(
        [*command, *asked], capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )


def test_an_engine_that_is_here_answers_as_the_reference_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    done = run(tmp_path, "genai")
    assert done.returncode == 0, done.stdout + done.stderr
    row = done.stdout.splitlines()[-1]
    assert row == "| qwen2_5_vl | onnx | g128 | onnxruntime-genai | float32 | read | 24 of 24 | 24 of 24 | ok |"


def test_an_environment_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "transformers.js", PATH="")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("error: transformers.js needs node and npm: install Node.js 20 or newer")
