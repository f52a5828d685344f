"""The parts of the base training that a CPU can check: loss, optimizer, schedule, and weights on disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import batches
import muon
import scenes
import train_base
from builders import TINY_INTERNVL, TINY_MODEL
from learner import Learner


@pytest.mark.parametrize(("folder", "most"), [(TINY_MODEL, 0.25), (TINY_INTERNVL, 0.35)])
def test_the_committed_weights_have_the_loss_that_training_ended_with(folder: Path, most: float) -> None:
    """Through the training's own data, drawing, network and loss, on test photographs; a new model knows nothing."""
    learner = Learner(folder, "cpu", compiled=False)
    layouts = batches.Layouts(folder, 4, 0, scenes.PHOTOS_OF["test"], scenes.KNOWN)
    canvas, *arrays = next(iter(layouts))
    tensors = [torch.from_numpy(array) for array in arrays]
    with torch.inference_mode():
        untrained = float(learner.loss(canvas, *tensors))
        weights = load_file(folder / "model.safetensors")
        learner.load({name: value.float() for name, value in weights.items()})
        trained = float(learner.loss(canvas, *tensors))
    assert untrained > 0.9 * math.log(2048)
    assert trained < most


def test_batches_follow_their_seed() -> None:
    def first(seed: int) -> list[bytes]:
        canvas, *arrays = next(iter(batches.Layouts(TINY_MODEL, 2, seed, scenes.PHOTOS_OF["train"], scenes.KNOWN)))
        return [bytes([canvas]), *(array.tobytes() for array in arrays)]

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("shape", [(3, 96, 40), (2, 40, 96), (1, 64, 64)])
def test_muon_brings_singular_values_near_one_and_keeps_directions(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=shape)
    found = muon.orthogonalise(torch.from_numpy(given)).numpy()
    u, _, v = np.linalg.svd(given, full_matrices=False)
    for ours, left, right in zip(found, u, v, strict=True):
        core = left.T @ ours @ right.T  # diagonal when singular directions are kept
        assert np.abs(core - np.diag(np.diag(core))).max() < 1e-6
        assert (np.diag(core) > 0.3).all() and (np.diag(core) < 1.3).all()


def test_the_optimizer_lowers_a_loss_and_refuses_a_missing_gradient() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    optimizer = muon.Optimizer(model)
    x = torch.randn(64, 8)
    y = x @ torch.randn(8, 4)
    losses = []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step(0.1)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(RuntimeError, match="no gradient"):
        optimizer.step(0.01)


def test_the_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    rates = [train_base.rate_at(seconds, total=100, hold=0.4, peak=2e-3) for seconds in (0, 4, 8, 39, 70, 100, 101)]
    assert rates == pytest.approx([0, 1e-3, 2e-3, 2e-3, 1e-3, 0, 0])


def test_weights_come_back_from_their_parts_in_bf16(tmp_path: Path) -> None:
    weights = {f"w{index}": torch.randn(2_000_000) for index in range(9)}  # 4 MB each in bf16
    train_base.save_parts(weights, tmp_path)
    parts = list(tmp_path.glob("*.safetensors"))
    assert len(parts) == 3 and max(part.stat().st_size for part in parts) < 16e6
    loaded = train_base.load_parts(tmp_path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name].bfloat16()) for name in weights)
