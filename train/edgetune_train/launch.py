"""Runs of several processes, as started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.rendezvous import rendezvous
from transformers import TrainingArguments

from edgetune_core.stage import StageResult, run_stage

Build = Callable[[Path], Mapping[str, Any]]
"""Writes a stage's files into the folder that it is given and returns the manifest's `result`."""

_calls = itertools.count()  # the processes of a launch make the same calls in the same order
_LONGEST = timedelta(days=1)


def main_process() -> bool:
    """Whether this process writes the stage folder; the others only train."""
    return int(os.environ.get("RANK", "0")) == 0


def run_stage_together(
    stage: str,
    output: Path,
    *,
    inputs: Mapping[str, Path],
    settings: Callable[[], Mapping[str, Any]],
    build: Build,
    seed: int,
    force: bool,
    dry_run: bool,
) -> StageResult:
    """Run a resumable stage whose `build` all processes of a launch do together; see `run_stage`.

    The main process alone looks at inputs and output. It tells the others which folder it builds in, so that a launch
    hashes its inputs once and no process has to find that folder by its name.

    Args:
        stage: the verb.
        output: the folder to write.
        inputs: files and folders that the result depends on.
        settings: returns everything else it depends on; called in the main process only, for pictures are hashed in it.
        build: is called in all processes, with the same folder, unless there is nothing to do.
        seed: of the training.
        force: build even when nothing has changed.
        dry_run: write nothing.

    Returns:
        What the stage left; in the other processes without its manifest.
    """
    run = partial(run_stage, stage, output, inputs=inputs, seed=seed, force=force, dry_run=dry_run, resumable=True)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run(settings=settings(), build=build)
    store, _, _ = next(rendezvous("env://", timeout=_LONGEST))
    key = f"edgetune/folder/{next(_calls)}"
    if main_process():
        return _lead(store, key, lambda tell: run(settings=settings(), build=tell), build)
    # These processes have nothing to clean up, and a launcher ends them while they wait for others: not in Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    folder = store.get(key).decode()
    if folder:
        build(Path(folder))
    return StageResult(output, {}, skipped=not folder)


def _lead(store: Any, key: str, run: Callable[[Build], StageResult], build: Build) -> StageResult:
    told = False

    def tell_and_build(folder: Path) -> Mapping[str, Any]:
        nonlocal told
        store.set(key, str(folder.absolute()))
        told = True
        return build(folder)

    try:
        return run(tell_and_build)
    finally:
        if not told:
            store.set(key, "")


def is_sharded(arguments: TrainingArguments) -> bool:
    """Whether no process holds the whole model: under FSDP or DeepSpeed, chosen by an argument or by the launcher."""
    launchers = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    launched = any(os.environ.get(name, "false").lower() in ("true", "1") for name in launchers)
    return launched or bool(arguments.fsdp or arguments.deepspeed)


def parallel(trainer: Any) -> dict[str, Any]:
    """Return how many processes train together, and by what, in accelerate's word: "no", "multi_gpu", "fsdp", ..."""
    kind = str(trainer.accelerator.distributed_type.value).lower()
    return {"processes": trainer.args.world_size, "kind": kind}
