"""The exported vision encoders against the stock towers of transformers, on grids of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from edgetune.export.vision import exportable_vision
from edgetune_runtime.errors import InputError
from reference import load_model

GRIDS = {
    "smallest": [[1, 2, 2]],
    "square": [[1, 16, 16]],
    "wide": [[1, 4, 36]],
    "tall": [[1, 42, 2]],
    "large": [[1, 36, 52]],
    "two frames": [[2, 6, 10]],
    "ragged": [[1, 40, 2], [1, 8, 14], [2, 6, 4], [1, 2, 2]],
    "equal": [[1, 8, 8]] * 3,
}
FAMILIES = ["qwen3_vl", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, onnxruntime.InferenceSession]:
    """The stock tower, and the exported encoder of the same checkpoint."""
    checkpoint: Path = request.getfixturevalue(request.param)
    bundle: Path = request.getfixturevalue(f"{request.param}_bundle")
    model = load_model(checkpoint)
    return model.model.visual, onnxruntime.InferenceSession(str(bundle / "onnx/vision_encoder.onnx"))


def random_patches(grids: list[list[int]], width: int, seed: int = 0) -> torch.Tensor:
    count = sum(frames * rows * columns for frames, rows, columns in grids)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32))


@pytest.mark.parametrize("name", GRIDS)
def test_equals_transformers(pair: tuple[Any, onnxruntime.InferenceSession], name: str) -> None:
    tower, session = pair
    grids = torch.tensor(GRIDS[name])
    patches = random_patches(GRIDS[name], session.get_inputs()[0].shape[1])
    with torch.no_grad():
        theirs = tower(patches, grids)
    expected = [theirs.pooler_output, *(getattr(theirs, "deepstack_features", None) or [])]
    ours = session.run(None, {"pixel_values": patches.numpy(), "image_grid_thw": grids.numpy()})
    for mine, reference in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, reference.numpy(), atol=5e-5, rtol=1e-5)


def test_images_do_not_see_each_other(pair: tuple[Any, onnxruntime.InferenceSession]) -> None:
    _, session = pair
    width = session.get_inputs()[0].shape[1]
    first, second = random_patches([[1, 8, 6]], width, 1).numpy(), random_patches([[1, 4, 10]], width, 2).numpy()

    def features(other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        grids = np.array([[1, 8, 6], [1, 4, 10]])
        result: npt.NDArray[np.float32] = session.run(
            ["image_features"], {"pixel_values": np.concatenate([first, other]), "image_grid_thw": grids}
        )[0]
        return result

    ours, changed = features(second), features(-second)
    np.testing.assert_array_equal(ours[:12], changed[:12])
    assert np.abs(ours[12:] - changed[12:]).max() > 0.1


def test_a_model_type_without_wrapper_is_refused() -> None:
    with pytest.raises(InputError, match="no exportable vision tower for model type 'llava'"):
        exportable_vision("llava", torch.nn.Module())
