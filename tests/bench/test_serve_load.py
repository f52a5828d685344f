"""The script that measures a server, at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builders import REPOSITORY

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")


def test_every_answer_is_the_sessions(tiny_bundle: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    script, figures = REPOSITORY / "benchmarks" / "studies" / "serve_load.py", tmp_path / "figures.json"
    words = ["--requests", "40", "--rounds", "5", "--pictures", "10", "--json", str(figures)]
    command = [sys.executable, str(script), str(tiny_bundle), "--data", str(tiny_scenes), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert [(row["clients"], row["requests"], row["wrong"]) for row in found["load"]] == [
        (clients, 40, 0) for clients in (1, 8, 32)
    ]
    assert len(found["kinds"]) >= 3 and len(found["memory_mb"]) == 10 and found["overhead"]["requests"] == 5
