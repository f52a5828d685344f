"""The scripts of `make test-readers`, as far as this environment's own engine goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "readers"


def run(work: Path, readers: str, **variables: str) -> subprocess.CompletedProcess[str]:
    places = ["--work", str(work), "--environments", str(work / "env")]
    command = [sys.executable, str(SCRIPTS / "run_readers.py"), *places, "--families", "qwen3_vl", "--readers", readers]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=False)


def test_an_engine_that_is_here_answers_as_the_reference_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    done = run(tmp_path, "genai")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| onnxruntime-genai | float32 | onnx, joined | g128 | 24 of 24 |" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].endswith("; 0 wrong")


def test_an_environment_that_cannot_be_made_is_one_line_and_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "transformers.js", PATH="")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: transformers.js needs node and npm: install Node.js 20 or newer"]
    assert done.stdout.splitlines()[-1].endswith("; 1 wrong")


ENGINE = """
import os, sys
print('{"versions": {"engine": "1.0"}}')
for path in sys.argv[1:]:
    print('{"job": "%s"}' % path, flush=True)
    if path.endswith("refused.json"):
        print('{"error": "ValueError: 1 error\\\\n  Unsupported: bits=3\\\\n  see the manual"}')
    elif path.endswith("deadly.json"):
        os._exit(7)
    else:
        print('{"prompt_tokens": 5, "tokens": [1, 2]}', flush=True)
"""


def test_an_engine_that_dies_is_started_again_for_the_jobs_that_are_left(tmp_path: Path) -> None:
    sys.path.append(str(SCRIPTS))
    import run_readers

    (tmp_path / "engine.py").write_text(ENGINE)
    jobs = [tmp_path / f"{name}.json" for name in ("fine", "refused", "deadly", "last")]
    found = run_readers.Run(tmp_path, ["qwen3_vl"])
    told = run_readers.ask([sys.executable, str(tmp_path / "engine.py")], jobs, found)
    assert [len(told[job].answers) for job in jobs] == [1, 0, 0, 1]
    assert told[jobs[1]].error == "Unsupported: bits=3"
    assert told[jobs[2]].error.startswith("exit code 7")
    assert found.versions == {"engine": "1.0"}
