"""Choose each group's range: a little clipping buys a finer step for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune_calibrate.solve.grid import Grid, spanning
from edgetune_runtime.quant.blocks import BlockFormat

STEPS = 20
NARROWEST = 0.6


def search_ranges(weight: Tensor, fmt: BlockFormat, hessian: Tensor, *, feedback: bool) -> Grid:
    """The grid with the least error of rounding to nearest among shrunk spans of each group.

    Every group of every row tries `STEPS` shares of its span, 1 down to `NARROWEST`, and takes its best.

    Args:
        weight: float32 [N, K].
        fmt: what grid.
        hessian: float32 [K, K], what errors cost.
        feedback: other columns will make up for an error, so each counts on its own, by the Hessian's diagonal. Else
            errors within a group add up as they are, by the Hessian's block of the group. (Of the two, each gave the
            lower divergence of the model's outputs in its case.)
    """
    size = fmt.block
    if feedback:
        costs = hessian.diagonal().view(-1, size, 1)
    else:
        blocks = hessian.view(len(hessian) // size, size, -1, size)
        costs = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    best = spanning(weight, fmt)
    least = _error(weight, best, costs)
    for share in torch.linspace(1, NARROWEST, STEPS).tolist()[1:]:
        grid = spanning(weight, fmt, share)
        error = _error(weight, grid, costs)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
        best = Grid(scale, zero, fmt.bits, fmt.symmetric)
    return best


def _error(weight: Tensor, grid: Grid, costs: Tensor) -> Tensor:
    """Return what rounding to nearest costs, float32 [N, groups].

    Args:
        weight: [N, K].
        grid: to round to.
        costs: of each group, diagonals [groups, size, 1] or whole blocks [groups, size, size] of the Hessian.
    """
    error = grid.values(grid.codes(weight)).sub_(weight).unflatten(1, (len(costs), -1))
    pulled = error * costs[..., 0] if costs.shape[2] == 1 else torch.einsum("ngi,gij->ngj", error, costs)
    total: Tensor = (pulled * error).sum(2)
    return total
