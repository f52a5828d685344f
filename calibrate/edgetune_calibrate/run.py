"""The calibrate stage: int4 weights for a checkpoint, solved on the user's own records."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch

from edgetune_calibrate.activations import Activations
from edgetune_calibrate.batches import batches, roles, token_weights
from edgetune_calibrate.formats import BoxPlanner, head_settings, told_formats
from edgetune_calibrate.journal import Journal, UnitLog
from edgetune_calibrate.linears import input_groups
from edgetune_calibrate.memory import needed, room_for_activations
from edgetune_calibrate.models import open_model, quantized_model
from edgetune_calibrate.quantize import SolvedBlock, quantize_decoder
from edgetune_calibrate.samples import CalibrationSet, calibration_set
from edgetune_calibrate.settings import CalibrateSettings
from edgetune_calibrate.vision import InputRanges, Ranges
from edgetune_core.blocks import of_block
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample
from edgetune_core.progress import Tell, no_one
from edgetune_core.weightset import SCHEMA
from edgetune_runtime.manifest import sha256_tree

ACTIVATIONS = ".activations"
"""Folder of the work folder for activations that do not fit in memory."""


def calibrate(
    checkpoint: Path,
    data: Path,
    work: Path,
    settings: CalibrateSettings,
    *,
    evaluation: Path | None = None,
    progress: Tell = no_one,
    seen: Tell = no_one,
) -> dict[str, Any]:
    """Write a weight set into `work`, continuing from the blocks that an interrupted run finished there.

    Args:
        checkpoint: Hugging Face folder, merged and not quantized.
        data: JSONL file of records to calibrate on.
        work: an existing folder.
        settings: everything else.
        evaluation: JSONL file of records that must not share a picture with `data`.
        progress: told after each block; the head counts as one.
        seen: told how many samples the vision tower has read, before the first block.

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
    ranges, choice = _solve(source, chosen, settings, journal, units, progress, seen)
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
    tell: Tell,
    seen: Tell,
) -> tuple[Ranges, dict[str, Any] | None]:
    """Write the blocks that the journal lacks.

    Returns:
        The ranges of the vision encoder's activations, and how formats were chosen, if they were.
    """
    dtype = settings.dtype(source.dtype)
    streamed = open_model(source, dtype, settings.device)
    head = head_settings(streamed.model, settings)
    formats = told_formats(streamed.model, source.modules, settings)
    solve = settings.decoder(formats, head)
    need = needed(streamed.model, source.modules, solve, device=settings.device)
    room = room_for_activations(settings.memory_gb, need, device=settings.device)
    kept = _activations(settings, room, journal.folder / ACTIVATIONS)
    try:
        blocks = len(streamed.model.get_submodule(source.modules.blocks)) + (head is not None)
        total, before = blocks * (1 + settings.chooses), 0
        finished = journal.finished()
        tell(len(finished), total)
        given = _Batches(kept, chosen.samples, source, dtype)
        weights = token_weights([roles(sample, source) for sample in chosen.samples], settings.modality_weights)
        planner, choice = None, None
        if units is not None:
            # Units are measured in forwards of the whole model: weights that fit stay in memory for all of them.
            measured = open_model(source, dtype, settings.device, room if settings.device == "cpu" else 1 << 62)
            planner, before = BoxPlanner(measured, source, chosen.samples, given, settings, units, kept), blocks
            groups = _groups(streamed.model, source) + (head is not None)
            choice = planner.choose(weights, lambda done: tell(-(-done * blocks // groups), total))
            solve = settings.decoder(choice.formats, head)
            del measured
        ranges = InputRanges(streamed.model, source.modules.vision_root)
        solved = quantize_decoder(
            streamed.model,
            source.modules,
            given,
            solve,
            token_weights=weights,
            device=settings.device,
            held=streamed.loaded,
            watched=_tower_runs(ranges, None if settings.chooses else given),
            kept=kept,
            finished=finished,
            tell=seen,
        )
        for done in _written(solved, journal):
            tell(before + done, total)
        if planner is None or choice is None:
            return ranges.ranges(), None
        quantized = quantized_model(source, journal.weights(), dtype, settings.device)
        return ranges.ranges(), choice.to_dict(settings, planner.finish(quantized))
    finally:
        kept.close()


def _groups(model: Any, source: HubCheckpoint) -> int:
    """How many groups of linears with one input the model's blocks have, all together."""
    every = model.get_submodule(source.modules.blocks)
    return sum(len(input_groups(of_block(source.modules, block))) for block in every)


@contextmanager
def _tower_runs(ranges: InputRanges, given: _Batches | None) -> Iterator[None]:
    """Watch the vision tower; afterwards drop the pixels of batches that no other model will read."""
    with ranges:
        yield
    if given is not None:
        given.forget_pixels()


def _written(solved: Iterable[SolvedBlock], journal: Journal) -> Iterator[int]:
    """Write each block while the next one is solved, and yield how many are on disk."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[int] | None = None

        def write(block: SolvedBlock) -> int:
            journal.add(block)
            return block.index + 1

        for block in solved:
            if writing is not None:
                yield writing.result()
            writing = writer.submit(write, block)
        if writing is not None:
            yield writing.result()


def _activations(settings: CalibrateSettings, room: int, folder: Path) -> Activations:
    """Where activations rest: on a GPU unless told otherwise, or in host memory and files."""
    if settings.device == "cuda" and not settings.offload:
        return Activations("cuda", folder=folder)
    return Activations(room=room, folder=folder)


class _Batches(Sequence[dict[str, Any]]):
    """The samples as keyword arguments of the model's forward, resting among the activations."""

    def __init__(self, kept: Activations, samples: Sequence[Sample], source: HubCheckpoint, dtype: torch.dtype) -> None:
        self._kept, self._count = kept, len(samples)
        for number, one in enumerate(batches(samples, source, dtype)):
            kept["batch", number] = one

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, number: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        found: dict[str, Any] = self._kept.get(("batch", number))
        return found

    def forget_pixels(self) -> None:
        """Leave no more of the pictures than that there are some, for when the vision tower is not run any more.

        Of tiles a corner of ones stays: some models count them, and leave out those that are all zero.
        """
        for number, one in enumerate(self):
            if "pixel_values" in one:
                pixels = one["pixel_values"]
                corner = pixels[:0] if pixels.ndim == 2 else torch.ones_like(pixels[..., :1, :_CORNER, :_CORNER])
                self._kept["batch", number] = one | {"pixel_values": corner.clone()}


_CORNER = 32
"""Pixels a side of what is left of a tile: at least a patch."""


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
