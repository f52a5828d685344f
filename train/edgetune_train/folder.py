"""What a training leaves in its folder, and what only an interrupted one needs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers import Trainer

LOG = "log.jsonl"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
CHECKPOINTS = "checkpoints"
BEST = "best"


def save_adapter(trainer: Trainer, folder: Path) -> None:
    """Write the adapter (the best one where it was kept) and the log; drop what only an interrupted run needs."""
    written = folder / CHECKPOINTS / "final"
    trainer.save_model(str(written))  # every rank takes part: sharded weights are gathered here
    if trainer.is_world_process_zero():
        best = folder / BEST
        for name in ADAPTER_FILES:
            os.replace((best if best.is_dir() else written) / name, folder / name)
        _sort_names(folder / "adapter_config.json")
        with (folder / "logs" / LOG).open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
        shutil.rmtree(best, ignore_errors=True)
        shutil.rmtree(folder / CHECKPOINTS)
    trainer.accelerator.wait_for_everyone()


def _sort_names(path: Path) -> None:
    """Sort lists of names in an adapter's config: peft writes sets, whose order differs from process to process."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            config[key] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
