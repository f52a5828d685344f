"""Runs of several processes, as started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import TrainingArguments


def main_process() -> bool:
    """Whether this process writes the stage folder; the others only train."""
    return int(os.environ.get("RANK", "0")) == 0


def work_folder(output: Path) -> Path:
    """Return the folder where the main process builds `output`, as the stage lays it out."""
    return output.parent / f".{output.name}.partial"


def is_sharded(arguments: TrainingArguments) -> bool:
    """Whether no process holds the whole model: under FSDP or DeepSpeed, chosen by an argument or by the launcher."""
    launchers = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    launched = any(os.environ.get(name, "false").lower() in ("true", "1") for name in launchers)
    return launched or bool(arguments.fsdp or arguments.deepspeed)
