"""Runs of several processes, as started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import os
from pathlib import Path


def main_process() -> bool:
    """Whether this process writes the stage folder; the others only train."""
    return int(os.environ.get("RANK", "0")) == 0


def work_folder(output: Path) -> Path:
    """Return the folder where the main process builds `output`, as the stage lays it out."""
    return output.parent / f".{output.name}.partial"
