"""Ranges of the vision encoder's inputs: against what plain hooks see, and against every cut tried in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from edgetune_calibrate.vision import InputRanges
from edgetune_runtime.errors import InputError
from reference import load_model

GRIDS = ([[1, 4, 6]], [[1, 8, 2], [1, 2, 2]])


def pictures(width: int) -> Iterator[tuple[Tensor, Tensor]]:
    for seed, grids in enumerate(GRIDS):
        count = sum(h * w for _, h, w in grids)
        yield torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), torch.tensor(grids)


def seen(tower: Any, width: int) -> dict[str, npt.NDArray[np.float64]]:
    """Every input of every linear layer, by a forward of our own."""
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name, layer in tower.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(
                lambda _, inputs, __, name=name: found.setdefault(name, []).append(inputs[0].numpy().ravel())
            )
    with torch.no_grad():
        for pixels, grid in pictures(width):
            tower(pixels, grid)
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}


def watch(*inputs: Tensor) -> dict[str, float]:
    """The range of a layer that is given so much."""
    model = nn.ModuleDict({"visual": nn.Sequential(nn.Linear(inputs[0].shape[-1], 1, dtype=inputs[0].dtype))})
    with torch.no_grad(), InputRanges(model, "visual") as watched:
        for values in inputs:
            model["visual"](values)
    return watched.ranges()["visual.0"]


def error(values: npt.NDArray[np.float64], low: float, high: float) -> float:
    """Mean squared error of uint8 with one scale and zero point."""
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    restored = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.mean((restored - values) ** 2))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_every_layer_has_the_range_that_rounds_it_best(family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    model = load_model(folder)
    width = model.model.visual.patch_embed.proj.weight[0].numel()
    with torch.no_grad(), InputRanges(model, "model.visual") as watched:
        for pixels, grid in pictures(width):
            model.model.visual(pixels, grid)
    ranges = watched.ranges()
    inputs = seen(model.model.visual, width)
    assert set(ranges) == {f"model.visual.{name}" for name in inputs}
    for name, values in inputs.items():
        told = ranges[f"model.visual.{name}"]
        ends = min(values.min(), 0), max(values.max(), 0)
        assert ends[0] <= told["low"] <= 0 < told["high"] <= ends[1]
        ours = error(values, told["low"], told["high"])
        every = min(error(values, cut * ends[0], cut * ends[1]) for cut in np.linspace(0.1, 1, 200))
        assert ours <= every * 1.05 + 1e-12
        assert told["amax"] <= np.abs(values).max()


def test_an_outlier_is_cut_where_the_error_is_smallest() -> None:
    """Of 100,000 values one is x: (x - a)² for clipping it and 1e5 · (2a/254)² / 12 for the steps, least at x / 1.517.

    Steps longer than the others' whole spread cost them no more, so that a far outlier is kept.
    """

    def amax(outlier: float) -> float:
        values = torch.rand(1000, 100, generator=torch.Generator().manual_seed(0)) - 0.5
        values[0, 0] = outlier
        return watch(values)["amax"]

    assert amax(0.5) > 0.45
    assert amax(1.5) == pytest.approx(1.5 / 1.517, rel=0.03)
    assert amax(5000.0) > 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cut_is_that_of_a_plain_histogram(dtype: torch.dtype) -> None:
    """What a histogram of numpy gives over the full range, each cut of it tried."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(400, 100, generator=generator).exp().sub(1).to(dtype) for _ in range(3)]
    told = watch(*parts)
    values = torch.cat(parts).double().numpy().ravel()
    counts, edges = np.histogram(values, 4096)
    centres = (edges[1:] + edges[:-1]) / 2
    reach = np.abs(values).max()
    cuts = np.linspace(0.02, 1, 99)

    def cost(low: float, high: float, steps: int) -> float:
        scale = (high - low) / steps
        first = np.round(low / scale)
        codes = np.clip(np.round(centres / scale), first, first + steps)
        return float(((codes * scale - centres) ** 2 * counts).sum())

    best = cuts[np.argmin([cost(cut * values.min(), cut * values.max(), 255) for cut in cuts])]
    even = cuts[np.argmin([cost(-cut * reach, cut * reach, 254) for cut in cuts])]
    # Between two cuts that are as good as each other to float32's last counted digits, either may be found.
    wide = 0.0101 if dtype == torch.float32 else 1e-6
    assert told["low"] == pytest.approx(best * values.min(), abs=wide * abs(values.min()))
    assert told["high"] == pytest.approx(best * values.max(), abs=wide * values.max())
    assert told["amax"] == pytest.approx(even * reach, abs=wide * reach)


def test_inputs_of_one_value_and_of_none_that_is_finite() -> None:
    assert watch(torch.zeros(2, 3))["high"] == 0
    assert watch(torch.full((2, 3), 7.0))["high"] == pytest.approx(7, rel=0.01)
    with pytest.raises(InputError, match=r"visual\.0: the layer's inputs hold values that are not finite"):
        watch(torch.tensor([[1.0, float("nan")]]))
