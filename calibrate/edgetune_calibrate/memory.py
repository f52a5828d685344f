"""How much memory a calibration may take, and how much of it one block needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgetune_calibrate.capture import output_head
from edgetune_calibrate.linears import input_groups
from edgetune_calibrate.quantize import DecoderSettings
from edgetune_calibrate.solve.rows import PART
from edgetune_calibrate.vision import COUNTS
from edgetune_core.blocks import of_block
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules

SHARE = 0.5
"""Of the memory that is free, what a calibration takes unless told otherwise."""
BASE = 1_300_000_000
"""Bytes of the process itself with its libraries, and of one batch on its way through a block."""


def room_for_activations(memory_gb: float | None, need: int, *, device: str) -> int:
    """Return how many bytes of host memory activations may take.

    Args:
        memory_gb: what the whole process may take; None is half of what is free, or what it needs if that is more.
        need: bytes that the process takes besides.
        device: where it computes.

    Raises:
        InputError: not even one block can be solved in it.
    """
    free = _free()
    memory = max(int(SHARE * free), min(need, free)) if memory_gb is None else int(memory_gb * 1e9)
    if memory >= need or device != "cpu":
        return max(0, memory - need)
    least = f"{math.ceil(need / 1e8) / 10:.1f}"
    if memory_gb is None:
        raise InputError(
            f"solving one block of this model takes {least} GB of memory, and {free / 1e9:.1f} GB are free",
            hint=f"stop other programs, use --device cuda, or try with --memory-gb {least}",
        )
    raise InputError(
        f"--memory-gb: {memory_gb:g} GB, and solving one block of this model takes {least} GB",
        hint=f"give --memory-gb {least} or more, or use --device cuda",
    )


def needed(model: Any, modules: Modules, settings: DecoderSettings, *, device: str) -> int:
    """Return how many bytes of host memory the step that needs most takes.

    Args:
        model: on the meta device or not.
        modules: of its family.
        settings: how it is walked through.
        device: where it computes; on a GPU the host holds nothing but the process.
    """
    if device != "cpu":
        return 3 * BASE
    steps = [_vision(model, modules)]
    for block in model.get_submodule(modules.blocks):
        weights = _bytes(block)
        groups = input_groups(of_block(modules, block))
        shapes = [[tuple(block.get_submodule(name).weight.shape) for name in group] for group in groups]
        moments = [_moments(group[0][1], settings) for group in shapes]
        for group, own in zip(shapes, moments, strict=True):
            held = own if settings.true_sequential and settings.solve.method != "awq" else sum(moments)
            steps.append(weights + held + _solving(group))
    if settings.head is not None:
        head = output_head(model)
        rows, columns = head.get_parameter("weight").shape
        steps.append(_bytes(head) + 3 * rows * columns + _moments(columns, settings) + _solving([(rows, columns)]))
    return BASE + max(steps)


def _vision(model: nn.Module, modules: Modules) -> int:
    """Bytes of the vision tower, and of the counts of what its linears read."""
    if not modules.vision_root:
        return 0
    tower = model.get_submodule(modules.vision_root)
    return _bytes(tower) + COUNTS * sum(isinstance(layer, nn.Linear) for layer in tower.modules())


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _moments(columns: int, settings: DecoderSettings) -> int:
    """Bytes of the sums over tokens for a layer of so many inputs, and of their means."""
    return 4 * columns**2 * (4 if settings.compensate else 2)


def _solving(shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes of the Hessian's factor with what it is made of, and of copies of a part of the weights."""
    columns = shapes[0][1]
    rows = sum(rows for rows, _ in shapes)
    return 4 * (3 * columns**2 + 10 * min(rows * columns, PART))


def _free() -> int:
    """Bytes that the machine, or the container that this runs in, has free."""
    free = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    free += [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.isdigit()]
    return min(free, default=8_000_000_000)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
