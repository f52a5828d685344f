"""The script that measures the vision encoder beside OpenVINO, at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builders import REPOSITORY

SYSTEMS = ("edgetune int8", "edgetune int8-static, engine openvino", "edgetune int8, engine openvino", "OpenVINO")
SCRIPT = REPOSITORY / "benchmarks" / "peers" / "vision_openvino.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    common = [sys.executable, str(SCRIPT), "--shape", "small-qwen3-vl", "--rounds", "1", "--threads", "1"]
    return subprocess.run([*common, *words], capture_output=True, text=True, check=False)


def test_all_systems_encode_the_same_pictures(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    done = run("--patches", "24", "96", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["system"], row["patches"]) for row in rows] == [
        (system, patches) for patches in (24, 96) for system in SYSTEMS
    ]
    assert all(row["cosine"] > 0.98 and row["peak_mb"] > 20 for row in rows)


def test_an_odd_number_of_patches_is_refused() -> None:
    done = run("--patches", "30")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: 30 patches are no grid with even sides: take a multiple of 4"
