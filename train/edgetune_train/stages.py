"""A curriculum: several trainings in sequence, each from the adapter of the one before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_runtime.files import write_whole
from edgetune_runtime.json_file import read_json
from edgetune_runtime.records import AnyRecord
from edgetune_train.folder import ADAPTER_FILES
from edgetune_train.launch import main_process
from edgetune_train.settings import TrainSettings
from edgetune_train.train import train

_DONE = "result.json"


@dataclass(frozen=True)
class Stage:
    """One training of a curriculum.

    Attributes:
        name: what its folder is called.
        records: what it trains on.
        val: its held-out records.
        settings: its settings; the adapter's shape must be the same in all stages.
    """

    name: str
    records: Sequence[AnyRecord]
    val: Sequence[AnyRecord]
    settings: TrainSettings


def train_stages(checkpoint: HubCheckpoint, stages: Sequence[Stage], folder: Path) -> dict[str, Any]:
    """Train the stages in sequence into `folder`, going on where an interrupted run stopped.

    Each stage has a folder of its own, as `train` writes it; the adapter of the last one is the result.

    Args:
        checkpoint: the base of all.
        stages: at least one.
        folder: an existing folder.

    Returns:
        The manifest's `result`: that of the last stage, and under "stages" those of all by name.

    Raises:
        InputError, MissingDependency: see `train`.
    """
    results: list[dict[str, Any]] = []
    start: Path | None = None
    for stage in stages:
        place = folder / stage.name
        done = place / _DONE
        if done.is_file():
            result = read_json(done)
        else:
            if main_process():
                place.mkdir(exist_ok=True)
            result = train(checkpoint, stage.records, stage.val, stage.settings, place, start=start)
            if main_process():
                write_whole(done, json.dumps(result))
        results.append({"name": stage.name, **result})
        start = place
    if main_process():
        for name in ADAPTER_FILES:
            shutil.copyfile(folder / stages[-1].name / name, folder / name)
    return {**results[-1], "stages": results}
