"""Choose each group's range: a little clipping buys a finer step for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune_calibrate.solve.grid import Grid, spanning
from edgetune_runtime.quant.blocks import BlockFormat

STEPS = 20
NARROWEST = 0.6


def search_ranges(weight: Tensor, fmt: BlockFormat, importance: Tensor) -> Grid:
    """The grid with the least weighted squared rounding error among shrunk spans of each group.

    Every group of every row tries `STEPS` shares of its span, 1 down to `NARROWEST`, and takes its best.

    Args:
        weight: float32 [N, K].
        fmt: what grid.
        importance: float32 [K], what an error in a column costs: the mean square of that input, the diagonal of the
            Hessian.
    """
    best = spanning(weight, fmt)
    least = _error(weight, best, importance)
    for share in torch.linspace(1, NARROWEST, STEPS).tolist()[1:]:
        grid = spanning(weight, fmt, share)
        error = _error(weight, grid, importance)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(
            torch.where(better, grid.scale, best.scale),
            torch.where(better, grid.zero, best.zero),
            fmt.bits,
            fmt.symmetric,
        )
    return best


def _error(weight: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    """Return the weighted squared error of rounding to nearest, float32 [N, groups]."""
    error: Tensor = grid.values(grid.codes(weight)).sub_(weight).square_().mul_(importance)
    groups: Tensor = error.unflatten(1, (grid.scale.shape[1], -1))
    return groups.sum(2)
