"""What every method keeps: the rules of the weight set, exactness where possible, and less error than rounding."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from calibrate.solve.problems import group_of, inputs, layer, loss
from edgetune_calibrate.solve import LinearGroup, Method, SolveSettings, solve_group
from edgetune_calibrate.solve.gptq import Metric, gptq
from edgetune_calibrate.solve.grid import Grid, spanning
from edgetune_calibrate.solve.ranges import search_ranges
from edgetune_calibrate.solve.refine import refine
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat

METHODS: list[Method] = ["gptq", "awq", "rtn"]
FORMATS = [BlockFormat(4, 128, False), BlockFormat(4, 32, True), BlockFormat(3, 64, False), BlockFormat(8, 256, True)]


def settings_of(method: Method, fmt: BlockFormat) -> SolveSettings:
    return SolveSettings(method, fmt.bits, fmt.block, fmt.symmetric)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_solutions_keep_the_rules_of_the_weight_set(method: Method, fmt: BlockFormat) -> None:
    weight, hessian = layer()
    weight[0], weight[1], weight[2] = 0, 1e-9, weight[2].abs()  # nothing, next to nothing, one sign only
    weight[3, 5] = 300
    [solved] = solve_group(group_of(weight, hessian), settings_of(method, fmt)).values()
    assert (solved.bits, solved.block, solved.columns) == (fmt.bits, fmt.block, 256)
    assert solved.scales.dtype == np.float32
    assert (solved.scales > 0).all()
    np.testing.assert_array_equal(solved.scales, solved.scales.astype(np.float16))
    assert solved.codes.max() < 2**fmt.bits
    if fmt.symmetric:
        assert solved.zero_points is None
    else:
        assert solved.zero_points is not None
        assert solved.zero_points.min() >= 1
        assert solved.zero_points.max() < 2**fmt.bits
    assert np.isfinite(solved.dequantize()).all()
    np.testing.assert_array_equal(solved.dequantize()[0], 0)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_weights_on_a_grid_are_kept_exactly(method: Method, fmt: BlockFormat) -> None:
    random, (_, hessian) = np.random.default_rng(0), layer()
    groups, top, half = 256 // fmt.block, 2**fmt.bits - 1, 2 ** (fmt.bits - 1)
    scale = random.uniform(0.01, 0.1, (24, groups, 1)).astype(np.float16).astype(np.float32)
    zero = half if fmt.symmetric else random.integers(1, top, (24, groups, 1))
    codes = random.integers(0, top + 1, (24, groups, fmt.block))
    codes[:, :, 0], codes[:, :, 1] = 0, top
    weight = ((codes - zero) * scale).astype(np.float32).reshape(24, 256)
    [solved] = solve_group(group_of(torch.from_numpy(weight), hessian), settings_of(method, fmt)).values()
    np.testing.assert_array_equal(solved.dequantize(), weight)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_each_step_lowers_the_layers_error(seed: int, fmt: BlockFormat) -> None:
    weight, hessian = layer(seed)
    losses = []
    for settings in (
        settings_of("rtn", fmt),
        SolveSettings("gptq", fmt.bits, fmt.block, fmt.symmetric, sweeps=0),
        SolveSettings("gptq", fmt.bits, fmt.block, fmt.symmetric, sweeps=2),
    ):
        [solved] = solve_group(group_of(weight, hessian), settings).values()
        losses.append(loss(weight, solved, hessian))
    nearest, rounded, refined = losses
    assert rounded < 0.8 * nearest
    assert refined < rounded


@pytest.mark.parametrize("method", METHODS)
def test_linears_of_a_group_are_solved_as_each_alone(method: Method) -> None:
    weight, hessian = layer()
    settings = SolveSettings(method, group_size=64)
    both = solve_group(LinearGroup({"b": weight[:10], "a": weight[10:]}, hessian, 600), settings)
    assert list(both) == ["b", "a"]
    for name, rows in (("b", weight[:10]), ("a", weight[10:])):
        [alone] = solve_group(group_of(rows, hessian), settings).values()
        np.testing.assert_array_equal(both[name].dequantize(), alone.dequantize())


def test_refined_codes_are_a_minimum_that_single_changes_cannot_lower() -> None:
    """Against all 8^5 codes of a small layer on the final grid."""
    found = 0
    for seed in range(12):
        weight, hessian = layer(seed, rows=1, columns=5, tokens=12)
        metric = Metric.of(hessian, 0.01, act_order=True)
        start = spanning(weight, BlockFormat(3, 5, False))
        grid, codes = refine(weight, start, gptq(weight, start, metric), metric.hessian, 20)
        every = torch.tensor(list(itertools.product(range(8), repeat=5))).float()
        errors = weight - (every - grid.zero) * grid.scale
        losses = ((errors.double() @ metric.hessian.double()) * errors).sum(1)
        mine = losses[(every == codes).all(1)].item()
        near = losses[(every != codes).sum(1) == 1].min().item()
        assert mine <= near * (1 + 1e-5)
        found += mine <= losses.min().item() * (1 + 1e-5)
    assert found >= 8


def test_a_refined_scale_is_the_least_squares_one() -> None:
    weight, hessian = layer(rows=8, columns=64)
    grid = spanning(weight, BlockFormat(4, 64, False))
    codes = grid.codes(weight)
    units = (codes - grid.zero).double().numpy()
    root = np.linalg.cholesky(hessian.double().numpy()).T  # ‖root · e‖² is e H eᵀ
    expected = [
        np.linalg.lstsq((root @ u)[:, None], root @ w, rcond=None)[0][0]
        for u, w in zip(units, weight.double().numpy(), strict=True)
    ]
    refined, _ = refine(weight, grid, codes, hessian, 1)
    np.testing.assert_allclose(refined.scale[:, 0].numpy(), np.array(expected, np.float16))


@pytest.mark.parametrize("feedback", [True, False])
def test_ranges_are_the_best_of_their_candidates(feedback: bool) -> None:
    weight, hessian = layer(rows=4, columns=64)
    weight[1, 3] = 12.0
    fmt, cost = BlockFormat(3, 32, False), hessian.double().numpy()

    def errors(grid: Grid) -> npt.NDArray[np.float64]:
        error = (grid.values(grid.codes(weight)) - weight).double().numpy()
        kept = np.diag(np.diag(cost)) if feedback else cost
        spans = [slice(0, 32), slice(32, 64)]
        return np.array([[row[span] @ kept[span, span] @ row[span] for span in spans] for row in error])

    candidates = [errors(spanning(weight, fmt, float(share))) for share in np.linspace(1, 0.6, 20)]
    chosen = errors(search_ranges(weight, fmt, hessian, feedback=feedback))
    np.testing.assert_allclose(chosen, np.min(candidates, axis=0), rtol=1e-4)
    assert (chosen < 0.95 * candidates[0]).any()


def test_the_unquantized_outputs_are_the_aim_where_they_are_known() -> None:
    weight, _ = layer()
    original = inputs(5, 600, 256)
    seen = original + 0.3 * inputs(6, 600, 256)  # what quantized layers before made of it
    hessian, cross = seen.T @ seen / 600, (original - seen).T @ seen / 600
    wanted = (original @ weight.T).double().numpy()
    distances = []
    for known in (None, cross):
        [solved] = solve_group(group_of(weight, hessian, known), SolveSettings(bits=8, damping=1e-4)).values()
        distances.append(np.square(seen.double().numpy() @ solved.dequantize().T - wanted).sum())
    best = np.linalg.lstsq(seen.double().numpy(), wanted, rcond=None)[1].sum()  # of any weight, unrounded
    assert distances[1] < 1.02 * best
    assert distances[0] > 1.1 * best


def test_group_sizes_that_do_not_divide_and_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="a: 256 input columns are not a multiple of the group size 96"):
        solve_group(group_of(*layer()), SolveSettings(group_size=96))
    with pytest.raises(InputError, match="bits is 5"):
        SolveSettings(bits=5)
    with pytest.raises(InputError, match="damping is 0"):
        SolveSettings(damping=0)
    with pytest.raises(InputError, match="group_size is 0"):
        SolveSettings(group_size=0)
    with pytest.raises(InputError, match="sweeps is -1"):
        SolveSettings(sweeps=-1)
