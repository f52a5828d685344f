"""GPTQ against the loop of its paper, and on inputs that leave its Hessian singular."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from calibrate.solve.problems import group_of, layer, loss
from edgetune_calibrate.solve import SolveSettings, solve_group
from edgetune_calibrate.solve.gptq import Metric, gptq
from edgetune_calibrate.solve.grid import Grid, spanning
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat

Array = npt.NDArray[np.float64]


def paper_loop(weight: Array, scale: Array, zero: Array, hessian: Array, order: list[int], top: int) -> Array:
    """Algorithm 1 of arXiv 2210.17323, a column at a time: round, divide the error by [H⁻¹]_jj, update what is left."""
    weight, codes, size = weight.copy(), np.zeros_like(weight), weight.shape[1] // scale.shape[1]
    left = list(order)
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        column, group = left[0], left[0] // size
        codes[:, column] = np.clip(np.rint(weight[:, column] / scale[:, group]) + zero[:, group], 0, top)
        value = (codes[:, column] - zero[:, group]) * scale[:, group]
        error = (weight[:, column] - value) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0][None]
        left.pop(0)
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("bits", "symmetric", "group"), [(4, False, 32), (4, True, 160), (3, False, 40)])
def test_codes_are_those_of_the_papers_loop(act_order: bool, bits: int, symmetric: bool, group: int) -> None:
    weight, hessian = layer(seed=bits, rows=6, columns=160)
    grid = spanning(weight, BlockFormat(bits, group, symmetric))
    metric = Metric.of(hessian, 0.01, act_order=act_order)
    damped = hessian.double().numpy() + 0.01 * hessian.diagonal().mean().item() * np.eye(160)
    np.testing.assert_allclose(metric.hessian.numpy(), damped, rtol=1e-5, atol=1e-6)
    order = np.argsort(-np.diag(damped)).tolist() if act_order else list(range(160))
    expected = paper_loop(
        weight.double().numpy(), grid.scale.double().numpy(), grid.zero.double().numpy(), damped, order, grid.top
    )
    np.testing.assert_array_equal(gptq(weight, grid, metric).numpy(), expected)


def test_order_follows_the_columns_when_they_move_within_their_group() -> None:
    weight, hessian = layer(columns=64)
    moved = torch.cat([torch.randperm(32, generator=torch.Generator().manual_seed(start)) + start for start in (0, 32)])
    settings = SolveSettings(group_size=32, sweeps=0)
    [plain] = solve_group(group_of(weight, hessian), settings).values()
    [other] = solve_group(group_of(weight[:, moved], hessian[moved][:, moved]), settings).values()
    np.testing.assert_array_equal(other.codes.reshape(24, -1), plain.codes.reshape(24, -1)[:, moved])


def test_few_tokens_and_silent_columns_are_solved() -> None:
    weight, hessian = layer(tokens=20)  # rank 20 of 256
    hessian[7], hessian[:, 7] = 0, 0
    [solved] = solve_group(group_of(weight, hessian), SolveSettings(damping=1e-9)).values()
    [nearest] = solve_group(group_of(weight, hessian), SolveSettings(method="rtn")).values()
    assert loss(weight, solved, hessian) < 0.1 * loss(weight, nearest, hessian)
    # Nothing is known of a silent column, so its weights stay what they are as nearly as the grid allows.
    silent, step = solved.dequantize()[:, 7], solved.scales[:, 0]
    inside = np.abs(weight[:, 7].numpy()) < 5 * step
    assert inside.any()
    assert (np.abs(silent - weight[:, 7].numpy())[inside] <= 0.51 * step[inside]).all()


def test_silent_inputs_are_rounded_to_nearest() -> None:
    weight, _ = layer()
    metric = Metric.of(torch.zeros(256, 256), 0.01, act_order=True)
    grid = spanning(weight, BlockFormat(4, 64, False))
    torch.testing.assert_close(gptq(weight, grid, metric), grid.codes(weight), rtol=0, atol=0)


def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, hessian = layer()
    hessian[3, 3] = float("nan")
    with pytest.raises(InputError, match=r"a: .*not finite"):
        solve_group(group_of(weight, hessian), SolveSettings())


def test_an_indefinite_hessian_gets_more_damping() -> None:
    _, hessian = layer()
    lowest = torch.linalg.eigvalsh(hessian)[0]
    hessian.diagonal().sub_(lowest + 0.02 * hessian.diagonal().mean())
    metric = Metric.of(hessian, 0.01, act_order=False)
    added = (metric.hessian - hessian).diagonal() / hessian.diagonal().mean()
    torch.testing.assert_close(added, torch.full_like(added, 0.1), rtol=1e-3, atol=1e-4)


def test_the_metric_solves() -> None:
    weight, hessian = layer()
    metric = Metric.of(hessian, 0.01, act_order=True)
    torch.testing.assert_close(metric.solve(weight @ metric.hessian), weight, rtol=1e-3, atol=1e-3)


def test_codes_and_values_are_inverse() -> None:
    grid = Grid(torch.tensor([[0.5, 0.25]]), torch.tensor([[3.0, 8.0]]), 4, False)
    codes = torch.tensor([[0.0, 3, 15, 0, 8, 15]])
    values = torch.tensor([[-1.5, 0, 6, -2, 0, 1.75]])
    torch.testing.assert_close(grid.values(codes), values)
    torch.testing.assert_close(grid.codes(values), codes)
