"""The measuring script of the vision encoder runs at toy size, and its rows say what they must whatever the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from builders import REPOSITORY


def test_the_systems_compute_the_same(tmp_path: Path) -> None:
    script, output = REPOSITORY / "benchmarks" / "studies" / "vision_size.py", tmp_path / "rows.json"
    words = [
        "--shape",
        "small-qwen2.5-vl",
        "--picture",
        "140x84",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--json",
        str(output),
    ]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peer, exact, rounded = json.loads(output.read_text())
    assert [row["patches"] for row in (peer, exact, rounded)] == [10 * 6] * 3
    assert peer["cosine"] == 1 or abs(peer["cosine"] - 1) < 1e-6
    assert abs(exact["cosine"] - 1) < 1e-6
    assert 0.9 < rounded["cosine"] < 1
