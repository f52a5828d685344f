"""From a group of linears to their codes."""

from __future__ import annotations

from torch import Tensor

from edgetune_calibrate.solve.grid import Grid, minmax
from edgetune_calibrate.solve.problem import LinearGroup, SolveSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockWeight


def solve_group(group: LinearGroup, settings: SolveSettings) -> dict[str, BlockWeight]:
    """Round every weight of a group, on the device that its tensors are on.

    Raises:
        InputError: the group size does not divide K.
    """
    return {name: _solve(name, weight, settings) for name, weight in group.weights.items()}


def _solve(name: str, weight: Tensor, settings: SolveSettings) -> BlockWeight:
    grid = spanning(name, weight, settings)
    return grid.block_weight(grid.codes(weight))


def spanning(name: str, weight: Tensor, settings: SolveSettings) -> Grid:
    """The grid that spans every group's smallest and largest weight."""
    if weight.shape[1] % settings.group_size:
        raise InputError(
            f"{name}: {weight.shape[1]} input columns are not a multiple of the group size {settings.group_size}",
            hint="choose a group size that divides it, e.g. 32",
        )
    blocks = weight.float().unflatten(1, (-1, settings.group_size))
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    return minmax(low, high, settings.bits, settings.symmetric)
