"""The measuring script of memory runs on a small bundle, and its figures are those of the system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "studies" / "runtime_memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_by_what_keeps_it_small(int4_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    words = ["--picture", "200x160", "--rounds", "1", "--threads", "1", "--pictures", "60", "--json", str(output)]
    done = subprocess.run([sys.executable, SCRIPT, int4_bundle, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert [row["system"] for row in found["rows"]] == ["as it is", "one chunk", "arena", "heap"]
    for row in found["rows"]:
        loaded, answered = row["loaded"], row["answered"]
        assert 0 < loaded["anonymous_mb"] < loaded["resident_mb"] <= loaded["peak_mb"] <= answered["peak_mb"]
    assert [len(row["residents_mb"]) for row in found["rows"]] == [60, 0, 0, 0]
    assert found["bundle_mb"] * 1e6 == sum(path.stat().st_size for path in int4_bundle.rglob("*") if path.is_file())
    assert "resident after 50 pictures" in done.stdout
