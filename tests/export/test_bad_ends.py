"""An export that is stopped half way, or that runs out of disk, leaves one line, the documented code and no bundle."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from processes import start, wait_until
from small_disk import run_on_small_disk


def export_command(checkpoint: Path, output: Path) -> list[str]:
    paths = ["--checkpoint", str(checkpoint), "--output", str(output)]
    return [sys.executable, "-m", "edgetune", "export", *paths, "--precision", "fp32"]


def test_an_interrupted_export_leaves_nothing(qwen3_vl: Path, tmp_path: Path) -> None:
    process = start(export_command(qwen3_vl, tmp_path / "bundle"), stderr=subprocess.PIPE)
    wait_until(process, (tmp_path / ".bundle.partial").is_dir)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.read().strip().splitlines()[-1] == "error: interrupted"
    assert process.wait() == 130
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(qwen3_vl: Path, tmp_path: Path) -> None:
    done = run_on_small_disk(tmp_path / "disk", export_command(qwen3_vl, tmp_path / "disk" / "bundle"))
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-2] == f"error: {tmp_path / 'disk'}: no space left on the disk"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
