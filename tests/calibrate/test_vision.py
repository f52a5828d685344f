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

from edgetune_calibrate.vision import vision_ranges
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
    ranges = vision_ranges(model, "model.visual", lambda: pictures(width))
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

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(100, 1)

        def forward(self, pixels: Tensor, grid: Tensor) -> Tensor:
            out: Tensor = self.layer(pixels)
            return out

    def amax(outlier: float) -> float:
        values = torch.rand(1000, 100, generator=torch.Generator().manual_seed(0)) - 0.5
        values[0, 0] = outlier
        model = nn.ModuleDict({"visual": Tower()})
        return vision_ranges(model, "visual", lambda: [(values, torch.zeros(0))])["visual.layer"]["amax"]

    assert amax(0.5) > 0.45
    assert amax(1.5) == pytest.approx(1.5 / 1.517, rel=0.03)
    assert amax(5000.0) > 4000
