"""The measuring scripts of training run at toy sizes, and their rows say what they must whatever the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builders import REPOSITORY


def measured(script: str, output: Path, *options: str) -> Any:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "studies" / script), *options, "--json", str(output)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def test_packing_fills_places_and_leaves_the_loss(tmp_path: Path) -> None:
    rows = measured("packing.py", tmp_path / "rows.json", "--small", "--records", "18", "--rounds", "1")
    padded, packed = rows[:2], rows[2:]
    assert all(row["layout"].startswith("packed") for row in packed)
    assert [row["loss"] for row in rows] == pytest.approx([rows[0]["loss"]] * len(rows), rel=1e-5)
    assert max(row["utilization"] for row in packed) > max(row["utilization"] for row in padded) + 0.2


def test_training_speed_compares_the_same_records(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = measured("train_speed.py", tmp_path / "speed.json", "--small", "--records", "12", "--rounds", "1",
                      "--pack", "600")  # fmt: skip
    layouts = ("plain", "padded", "packed, first epoch", "packed")
    names = [f"{base} {layout}" for base in ("LoRA", "QLoRA") for layout in layouts]
    assert [row["system"] for row in result["rows"]] == names
    assert result["utilization"] > result["utilization_padded"]
    for plain, padded, *_ in (result["rows"][:4], result["rows"][4:]):
        assert plain["ratio"] == 1
        assert padded["loss"] == pytest.approx(plain["loss"], rel=1e-3)  # the same batches, our loss and theirs
