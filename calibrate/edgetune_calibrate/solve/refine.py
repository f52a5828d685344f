"""Lower a solved weight's error further by coordinate descent: each group's scale, then each code, given all others.

GPTQ settles a column once, knowing nothing of the columns after it. Here every step sees the whole error E = W - Q and
never raises tr(E H Eᵀ): along a direction d the error changes by -2t·(E H dᵀ) + t²·(d H dᵀ), least at
t = (E H dᵀ) / (d H dᵀ).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgetune_calibrate.solve.gptq import STRIP
from edgetune_calibrate.solve.grid import Grid, as_float16


def refine(
    weight: Tensor, grid: Grid, codes: Tensor, hessian: Tensor, sweeps: int, kernels: Any = None
) -> tuple[Grid, Tensor]:
    """Improve codes [N, K] and their grid's scales.

    Args:
        weight: float32 [N, K] that the codes should stand for.
        grid: where they lie; its zero points stay.
        codes: a first solution.
        hessian: float32 [K, K], damped.
        sweeps: how often to go through all columns.
        kernels: the module of that name, to take the columns of a group in one kernel.
    """
    scale, codes = grid.scale.clone(), codes.clone()
    error = weight - grid.values(codes)
    size = weight.shape[1] // scale.shape[1]
    for _ in range(sweeps):
        for group in range(scale.shape[1]):
            if kernels is not None:
                kernels.descend(codes, error, scale, grid.zero, hessian, group, grid.top)
                continue
            span = slice(group * size, (group + 1) * size)
            local = hessian[span, span]
            pull = error @ hessian[:, span]  # E H restricted to the group, [N, size]
            units = codes[:, span] - grid.zero[:, group, None]
            moved = _rescaled(scale[:, group], units, pull, local)
            change = (moved - scale[:, group])[:, None]
            error[:, span] -= change * units
            pull -= change * (units @ local)
            scale[:, group] = moved
            _descend(codes[:, span], error[:, span], moved, pull, local, grid.top)
    return Grid(scale, grid.zero, grid.bits, grid.symmetric), codes


def _descend(codes: Tensor, error: Tensor, scale: Tensor, pull: Tensor, local: Tensor, top: int) -> None:
    """Improve the codes [N, size] of a group in turn, and their error, strip by strip as GPTQ's columns are taken."""
    found, lost, pulled = (each.T.contiguous() for each in (codes, error, pull))
    change = torch.empty_like(found)
    for first in range(0, len(found), STRIP):
        last = min(first + STRIP, len(found))
        for column in range(first, last):
            better = (pulled[column] / (local[column, column] * scale)).add_(found[column]).round_().clamp_(0, top)
            torch.sub(better, found[column], out=change[column]).mul_(scale)
            found[column] = better
            pulled[column + 1 : last].addr_(local[column, column + 1 : last], change[column], alpha=-1)
        pulled[last:].addmm_(local[first:last, last:].T, change[first:last], alpha=-1)
    codes.copy_(found.T)
    error.copy_((lost - change).T)


def _rescaled(scale: Tensor, units: Tensor, pull: Tensor, local: Tensor) -> Tensor:
    """Return the best float16 scales [N] of a group whose values are scale · units [N, size], or the old if better."""
    gain, stiffness = (units * pull).sum(1), ((units @ local) * units).sum(1)
    moved = as_float16(scale + gain / stiffness.clamp_min(torch.finfo(stiffness.dtype).tiny))
    change = moved - scale
    return torch.where(change * (2 * gain - change * stiffness) > 0, moved, scale)
