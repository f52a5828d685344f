"""From a group of linears to their codes."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune_calibrate.solve.gptq import Metric, gptq
from edgetune_calibrate.solve.grid import spanning
from edgetune_calibrate.solve.problem import LinearGroup, SolveSettings
from edgetune_calibrate.solve.ranges import search_ranges
from edgetune_calibrate.solve.refine import refine
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockWeight


@torch.no_grad()
def solve_group(group: LinearGroup, settings: SolveSettings) -> dict[str, BlockWeight]:
    """Round every weight of a group, on the device that its tensors are on.

    "rtn" rounds to nearest on the span of each group; "awq" rounds to nearest on searched ranges, with its factors
    already in the weights (see `awq.search_factors`); "gptq" searches ranges, rounds with feedback and refines. The
    last two aim at the unquantized outputs where these are known. The linears are solved as one matrix, since they
    share their input: its rows never interact.

    Raises:
        InputError: the group size does not divide K, or the Hessian cannot be used.
    """
    names = ", ".join(group.names)
    weight = torch.cat([weight.float() for weight in group.weights.values()])
    if weight.shape[1] % settings.group_size:
        raise InputError(
            f"{names}: {weight.shape[1]} input columns are not a multiple of the group size {settings.group_size}",
            hint="choose a group size that divides it, e.g. 32",
        )
    if settings.method == "rtn":
        grid = spanning(weight, settings.format)
        codes = grid.codes(weight)
    else:
        try:
            metric = Metric.of(group.hessian, settings.damping, act_order=settings.act_order)
        except InputError as error:
            raise InputError(f"{names}: {error}") from error
        if group.cross is not None:
            weight = aimed(weight, group.cross, metric)
        grid = search_ranges(weight, settings.format, metric.hessian, feedback=settings.method == "gptq")
        if settings.method == "gptq":
            grid, codes = refine(weight, grid, gptq(weight, grid, metric), metric.hessian, settings.sweeps)
        else:
            codes = grid.codes(weight)
    rows = [len(weight) for weight in group.weights.values()]
    parts = zip(group.names, grid.split(rows), codes.split(rows), strict=True)
    return {name: part.block_weight(rows) for name, part, rows in parts}


def aimed(weight: Tensor, cross: Tensor, metric: Metric) -> Tensor:
    """The weight [N, K] that gives, on the quantized model's inputs x, what `weight` gives on the original's x̂.

    Least squares over the tokens, W + W C H⁻¹ with C the mean of (x̂ - x) xᵀ. Rounding it under H minimises the distance
    to the original outputs, which is GPTAQ's aim (Li et al. 2025, arXiv 2504.02692).
    """
    return weight + metric.solve(weight @ cross)
