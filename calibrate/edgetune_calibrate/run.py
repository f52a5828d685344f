"""The calibrate stage: int4 weights for a checkpoint, solved on the user's own records."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from edgetune_calibrate.batches import batch, roles, token_weights
from edgetune_calibrate.formats import BoxPlanner, head_settings, told_formats
from edgetune_calibrate.journal import Journal, UnitLog
from edgetune_calibrate.linears import input_groups
from edgetune_calibrate.quantize import quantize_decoder
from edgetune_calibrate.samples import CalibrationSet, calibration_set
from edgetune_calibrate.settings import CalibrateSettings
from edgetune_calibrate.vision import Ranges, vision_ranges
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.weightset import SCHEMA
from edgetune_runtime.manifest import sha256_tree

Progress = Callable[[int, int], object]
"""Called with how many blocks are done and how many there are."""


def calibrate(
    checkpoint: Path,
    data: Path,
    work: Path,
    settings: CalibrateSettings,
    *,
    evaluation: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a weight set into `work`, continuing from the blocks that an interrupted run finished there.

    Args:
        checkpoint: Hugging Face folder, merged and not quantized.
        data: JSONL file of records to calibrate on.
        work: an existing folder.
        settings: everything else.
        evaluation: JSONL file of records that must not share a picture with `data`.
        progress: told after each block; the head counts as one.

    Returns:
        The manifest's `result`, with the key `weightset` that `edgetune_core.weightset` describes.

    Raises:
        InputError: a file, record or setting cannot be used.
        MissingDependency: there is no such device.
    """
    settings.check_device()
    source = HubCheckpoint.open(checkpoint, exported=True)
    chosen = calibration_set(source, data, samples=settings.samples, seed=settings.seed, evaluation=evaluation)
    sha256 = sha256_tree(checkpoint)
    key = _key(settings, chosen, sha256)
    journal, units = Journal(work, key), UnitLog(work, key) if settings.chooses else None
    began, resumed = time.perf_counter(), len(journal.entries)
    ranges, choice = _solve(source, chosen, settings, journal, units, progress)
    seconds = time.perf_counter() - began
    journal.close()
    reports = [entry["report"] for entry in journal.entries]
    return {
        "family": source.family.name,
        "weightset": {
            "schema": SCHEMA,
            "method": settings.method,
            "linears": {name: entry for line in journal.entries for name, entry in line["linears"].items()},
            "overrides": {name: file for line in journal.entries for name, file in line["overrides"].items()},
            "vision_ranges": ranges,
            "calibration": {**chosen.to_dict(), **_errors(reports), "choice": choice},
            "checkpoint": {"path": str(checkpoint), "sha256": sha256},
        },
        "resumed_blocks": resumed,
        "seconds": round(seconds, 2),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if settings.device == "cuda" else None,
    }


def _solve(
    source: HubCheckpoint,
    chosen: CalibrationSet,
    settings: CalibrateSettings,
    journal: Journal,
    units: UnitLog | None,
    progress: Progress | None,
) -> tuple[Ranges, dict[str, Any] | None]:
    """Write the blocks that the journal lacks.

    Returns:
        The ranges of the vision encoder's activations, and how formats were chosen, if they were.
    """
    dtype = settings.dtype(source.dtype)
    model = source.load_model(dtype).to(settings.device)
    head = head_settings(model, settings)
    formats = told_formats(model, source.modules, settings)
    blocks = len(model.get_submodule(source.modules.blocks)) + (head is not None)
    total, before = blocks * (1 + settings.chooses), 0
    finished = journal.finished()
    tell = progress or (lambda done, total: None)
    tell(len(finished), total)
    batches = [batch(sample, source, dtype) for sample in chosen.samples]
    weights = token_weights([roles(sample, source) for sample in chosen.samples], settings.modality_weights)
    planner, choice = None, None
    if units is not None:
        planner, before = BoxPlanner(model, source, chosen.samples, batches, settings, units), blocks
        kinds = len(input_groups(source.modules))
        choice = planner.choose(weights, lambda done: tell(-(-done // kinds), total))
        formats = choice.formats
    ranges = vision_ranges(
        model,
        source.modules.vision_root,
        lambda: ((one["pixel_values"], one["image_grid_thw"]) for one in batches),
        device=settings.device,
    )
    solved = quantize_decoder(
        model,
        source.modules,
        batches,
        settings.decoder(formats, head),
        token_weights=weights,
        device=settings.device,
        finished=finished,
    )
    for block in solved:
        journal.add(block)
        tell(before + block.index + 1, total)
    return ranges, choice.to_dict(settings, planner.finish()) if choice and planner else None


def _key(settings: CalibrateSettings, chosen: CalibrationSet, checkpoint: str) -> str:
    """Return a hash of what the solved blocks depend on."""
    facts = [settings.to_dict(), chosen.sha256, checkpoint, torch.__version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _errors(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the share of output energy that rounding cost, per linear and over all."""
    error = {name: float(f"{value:.4g}") for report in reports for name, value in report["error"].items()}
    return {
        "tokens": max(count for report in reports for count in report["tokens"].values()),
        "mean_error": statistics.fmean(error.values()),
        "worst_linear": max(error, key=error.__getitem__),
        "error": error,
        "block_seconds": [report["seconds"] for report in reports],
    }
