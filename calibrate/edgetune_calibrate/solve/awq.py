"""AWQ's factors (Lin et al. 2023, arXiv 2306.00978): larger weights for the channels whose inputs are large.

Multiplying a column of the weight by a factor and dividing its input by the same changes nothing, but the column is
then rounded to a relatively finer grid. The layer before takes the division in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune_calibrate.solve.grid import spanning
from edgetune_calibrate.solve.problem import LinearGroup, SolveSettings

STEPS = 20
SMALLEST = 1e-4
"""Least factor before centring: a channel that is never active keeps weights of a size that float16 holds."""


@torch.no_grad()
def search_factors(group: LinearGroup, settings: SolveSettings) -> Tensor:
    """Return positive factors, float32 [K], for the columns of a group's weights; 1 everywhere if none help.

    Tried are the root mean squares of the inputs to the powers 0 .. 1, centred on 1; the least tr(E H Eᵀ) of rounding
    to nearest wins.
    """
    weight = torch.cat([weight.float() for weight in group.weights.values()])
    size = group.hessian.diagonal().clamp_min(0).sqrt()
    size = size / size.max().clamp_min(torch.finfo(size.dtype).tiny)
    best, least = torch.ones_like(size), float("inf")
    for exponent in torch.linspace(0, 1, STEPS + 1).tolist():
        factors = size.pow(exponent).clamp_min(SMALLEST)
        factors = factors / (factors.max() * factors.min()).sqrt()
        loss = _loss(weight * factors, group.hessian / (factors[:, None] * factors), settings)
        if loss < least:
            best, least = factors, loss
    return best


def _loss(weight: Tensor, hessian: Tensor, settings: SolveSettings) -> float:
    """Return tr(E H Eᵀ) of rounding a weight [N, K] to nearest."""
    grid = spanning(weight, settings.format)
    error = grid.values(grid.codes(weight)).sub_(weight)
    return float(((error @ hessian) * error).sum(dtype=torch.float64))
