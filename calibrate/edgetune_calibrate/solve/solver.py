"""From a group of linears to their codes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgetune_calibrate.solve.gptq import Metric, gptq
from edgetune_calibrate.solve.grid import Grid, spanning
from edgetune_calibrate.solve.problem import LinearGroup, SolveSettings
from edgetune_calibrate.solve.ranges import search_ranges
from edgetune_calibrate.solve.refine import refine
from edgetune_calibrate.solve.rows import CACHED, PART, row_parts, stacked
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
    weights = list(group.weights.values())
    columns = weights[0].shape[1]
    if columns % settings.group_size:
        raise InputError(
            f"{names}: {columns} input columns are not a multiple of the group size {settings.group_size}",
            hint="choose a group size that divides it, e.g. 32",
        )
    metric = None
    if settings.method != "rtn":
        try:
            metric = Metric.of(group.hessian, settings.damping, act_order=settings.act_order)
        except InputError as error:
            raise InputError(f"{names}: {error}") from error
    sizes = [len(weight) for weight in weights]
    solved = [
        _solve_rows(stacked(weights, rows), group.cross, metric, settings) for rows in row_parts(sum(sizes), columns)
    ]
    grid, codes = _joined([grid for grid, _ in solved]), torch.cat([codes for _, codes in solved])
    parts = zip(group.names, grid.split(sizes), codes.split(sizes), strict=True)
    return {name: part.block_weight(rows) for name, part, rows in parts}


def _solve_rows(
    weight: Tensor, cross: Tensor | None, metric: Metric | None, settings: SolveSettings
) -> tuple[Grid, Tensor]:
    """Return the grid of some rows of a group's weights, and their codes as uint8."""
    if metric is None:
        grid = spanning(weight, settings.format)
        return grid, grid.codes(weight).to(torch.uint8)
    if cross is not None:
        weight = aimed(weight, cross, metric)
    found = [
        search_ranges(weight[rows], settings.format, metric.hessian, feedback=settings.method == "gptq")
        for rows in row_parts(len(weight), weight.shape[1], PART if weight.is_cuda else CACHED)
    ]
    grid = _joined(found)
    if settings.method == "awq":
        return grid, grid.codes(weight).to(torch.uint8)
    kernels = _kernels(weight)
    codes = gptq(weight, grid, metric, kernels)
    grid, codes = refine(weight, grid, codes, metric.hessian, settings.sweeps, kernels)
    return grid, codes.to(torch.uint8)


def _kernels(weight: Tensor) -> Any:
    """The kernels for a weight on a GPU, where Triton is installed."""
    if not weight.is_cuda or importlib.util.find_spec("triton") is None:
        return None
    from edgetune_calibrate.solve import kernels

    return kernels


def _joined(grids: Sequence[Grid]) -> Grid:
    """Put grids of the same kind one below the other."""
    scale, zero = torch.cat([one.scale for one in grids]), torch.cat([one.zero for one in grids])
    return Grid(scale, zero, grids[0].bits, grids[0].symmetric)


def aimed(weight: Tensor, cross: Tensor, metric: Metric) -> Tensor:
    """The weight [N, K] that gives, on the quantized model's inputs x, what `weight` gives on the original's x̂.

    Least squares over the tokens, W + W C H⁻¹ with C the mean of (x̂ - x) xᵀ. Rounding it under H minimises the distance
    to the original outputs, which is GPTAQ's aim (Li et al. 2025, arXiv 2504.02692).
    """
    return weight + metric.solve(weight @ cross)
