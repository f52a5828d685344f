"""The kernels of the solver against the plain loops; on a CPU through Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")  # which only Linux has

from calibrate.solve.problems import layer
from edgetune_calibrate.solve import kernels
from edgetune_calibrate.solve.gptq import Metric, gptq
from edgetune_calibrate.solve.grid import spanning
from edgetune_calibrate.solve.refine import refine
from edgetune_runtime.quant.blocks import BlockFormat

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")


@pytest.mark.parametrize(
    ("fmt", "columns", "act_order"),
    [
        (BlockFormat(4, 32, True), 160, True),
        (BlockFormat(3, 64, False), 192, False),
        (BlockFormat(8, 48, True), 144, True),
    ],
)
def test_the_kernels_find_the_codes_of_the_plain_loops(fmt: BlockFormat, columns: int, act_order: bool) -> None:
    """Rows and columns that no program and no block of columns is full of; codes that are equally good may differ."""
    weight, hessian = layer(seed=fmt.bits, rows=37, columns=columns)
    weight[0, 3] = 40.0  # a code that is cut off
    metric = Metric.of(hessian, 0.01, act_order=act_order)
    # The same device for both: products of another one round otherwise, and a code that flips flips those after it.
    weight, metric = (
        weight.to(DEVICE),
        Metric(*(one.to(DEVICE) for one in (metric.hessian, metric.order, metric.factor))),
    )
    grid = spanning(weight, fmt, 0.8)

    codes, found = gptq(weight, grid, metric), gptq(weight, grid, metric, kernels)
    assert (codes != grid.codes(weight)).float().mean() > 0.05
    assert (found != codes).float().mean() < 0.002

    start = grid.codes(weight)
    plain, codes = refine(weight, grid, start, metric.hessian, 1)
    fused, found = refine(weight, grid, start, metric.hessian, 1, kernels)
    assert (codes != start).float().mean() > 0.05
    assert (found != codes).float().mean() < 0.002
    torch.testing.assert_close(fused.scale, plain.scale, rtol=1e-3, atol=0)
    assert (plain.scale != grid.scale).any()
