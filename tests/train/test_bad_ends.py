"""Stages that are stopped half way, or that run out of disk, leave one line, the documented code and no result."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import start, wait_until
from small_disk import run_on_small_disk
from train.test_merge import make_adapter

EDGETUNE = [sys.executable, "-m", "edgetune"]
TRAIN = ["--epochs", "2000", "--batch-size", "3", "--checkpoint-steps", "5", "--precision", "fp32"]


def paths(checkpoint: Path, output: Path, **others: Path) -> list[str]:
    named = {"checkpoint": checkpoint, "output": output, **others}
    return [word for name, path in named.items() for word in (f"--{name}", str(path))]


@pytest.mark.parametrize(
    ("number", "told", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "ended by SIGTERM", 143)]
)
def test_stopped_training_keeps_its_resume_points_only(
    qwen3_vl: Path, data: Path, tmp_path: Path, number: signal.Signals, told: str, code: int
) -> None:
    command = [*EDGETUNE, "train", *paths(qwen3_vl, tmp_path / "adapter", data=data), *TRAIN]
    process = start(command, stderr=subprocess.PIPE)
    wait_until(process, (tmp_path / ".adapter.partial" / "checkpoints").is_dir)
    process.send_signal(number)
    assert process.stderr is not None
    assert process.stderr.read().strip() == f"error: {told}"
    assert process.wait() == code
    assert [path.name for path in tmp_path.iterdir()] == [".adapter.partial"]


def test_an_interrupted_merge_leaves_nothing(qwen3_vl: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
    command = [*EDGETUNE, "merge", *paths(qwen3_vl, tmp_path / "out" / "merged", adapter=adapter)]
    process = start(command, stderr=subprocess.PIPE)
    wait_until(process, (tmp_path / "out" / ".merged.partial").is_dir)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.read().strip() == "error: interrupted"
    assert process.wait() == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "merge"])
def test_a_full_disk_is_one_line(qwen3_vl: Path, data: Path, tmp_path: Path, verb: str) -> None:
    disk = tmp_path / "disk"
    if verb == "train":
        command = [*EDGETUNE, "train", *paths(qwen3_vl, disk / "out", data=data), *TRAIN]
    else:
        adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
        command = [*EDGETUNE, "merge", *paths(qwen3_vl, disk / "out", adapter=adapter)]
    done = run_on_small_disk(disk, command)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[0] == f"error: {disk}: no space left on the disk"
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""
