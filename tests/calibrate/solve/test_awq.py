"""AWQ's factors: they favour salient channels, help rounding, and leave real models' answers as they are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrate.solve.problems import group_of, inputs, layer, loss
from edgetune_calibrate.fold import fold, seams
from edgetune_calibrate.solve import LinearGroup, SolveSettings, search_factors, solve_group
from edgetune_runtime.families import get_family
from reference import load_model

AWQ = SolveSettings(method="awq")


def test_a_channel_of_large_inputs_gets_a_larger_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 256, generator=generator)
    x[:, 17] *= 40
    weight = torch.randn(24, 256, generator=generator)
    factors = search_factors(group_of(weight, x.T @ x / 600), AWQ)
    assert factors.argmax() == 17
    assert (factors > 0).all()
    torch.testing.assert_close(factors.max() * factors.min(), torch.tensor(1.0))


@pytest.mark.parametrize("seed", range(3))
def test_factors_and_clipping_each_lower_the_error_of_rounding(seed: int) -> None:
    weight, hessian = layer(seed)
    factors = search_factors(group_of(weight, hessian), AWQ)
    scaled = group_of(weight * factors, hessian / (factors[:, None] * factors))
    losses = []
    for group, method in ((group_of(weight, hessian), "rtn"), (scaled, "rtn"), (scaled, "awq")):
        [solved] = solve_group(group, SolveSettings(method="awq" if method == "awq" else "rtn")).values()
        losses.append(loss(group.weights["a"], solved, group.hessian))
    assert losses[2] < losses[1] < losses[0]


def test_equal_channels_need_no_factors() -> None:
    weight, _ = layer()
    torch.testing.assert_close(search_factors(group_of(weight, torch.eye(256)), AWQ), torch.ones(256))
    torch.testing.assert_close(search_factors(group_of(weight, torch.zeros(256, 256)), AWQ), torch.ones(256))


def test_a_group_shares_factors_that_fit_all_its_linears() -> None:
    weight, hessian = layer()
    together = search_factors(LinearGroup({"q": weight[:8], "k": weight[8:]}, hessian, 600), AWQ)
    torch.testing.assert_close(together, search_factors(group_of(weight, hessian), AWQ))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_scaled_model_answers_as_before(family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    modules = get_family(family).modules
    assert modules is not None
    model = load_model(folder)
    tokens = {"input_ids": torch.randint(20, 200, (2, 24), generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        before = model(**tokens).logits
    scaled, moved = copy.deepcopy(model), 0
    for index, block in enumerate(scaled.get_submodule(modules.blocks)):
        for seam in seams(modules, block):
            weights = {name: block.get_submodule(name).weight.data for name in seam.readers}
            x = inputs(index, 300, next(iter(weights.values())).shape[1])
            factors = search_factors(LinearGroup(weights, x.T @ x / 300, 300), SolveSettings(group_size=32))
            moved += int((factors != 1).any())
            fold(block, seam, factors)
    assert moved >= 3
    with torch.no_grad():
        after = scaled(**tokens).logits
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert not np.array_equal(after.numpy(), before.numpy())
