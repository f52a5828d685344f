"""The study of real sizes runs at a small one: each row is a verb that really ran, with the system's account of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from builders import REPOSITORY


def test_rows_are_measured_and_noted(tmp_path: Path) -> None:
    """The size of what was written is the folder's; no process needs less memory than its interpreter."""
    script = REPOSITORY / "benchmarks" / "studies" / "real_sizes.py"
    places = ["--tokenizer", str(REPOSITORY / "examples" / "tiny" / "model"), "--folder", str(tmp_path)]
    small = ["--shape", "small-qwen3-vl", "--picture", "256x256", "--pack", "400", "--samples", "4"]
    done = subprocess.run(
        [sys.executable, str(script), "base", "train", "merge", "export", "run", "table", *places, *small],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["row"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == ["base", "train", "merge", "export", "run"]
    assert all(row["peak_mb"] > 20 and row["cpu_seconds"] > 0.1 for row in rows.values())
    bundle = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    assert round(rows["export"]["written_mb"] * 1e6) == sum(path.stat().st_size for path in bundle)
    assert [line.split(" | ")[1] for line in done.stdout.splitlines()[2:]] == list(rows)
