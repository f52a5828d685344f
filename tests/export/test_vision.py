"""The exported vision encoders against the stock towers of transformers, on grids of every kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from edgetune.export.graph import save_model
from edgetune.export.vision import export_vision, exportable_vision
from edgetune.export.vision_int8 import dynamic_layers, quantize_linears
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat
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


def test_layers_with_outliers_keep_block_scales(qwen3_vl: Path) -> None:
    tower = load_model(qwen3_vl).model.visual
    with torch.no_grad():  # a value that one scale has to stretch to, and that the output never sees
        tower.blocks[1].norm2.weight[0] = 1000
        tower.blocks[1].mlp.linear_fc1.weight[:, 0] = 0
    wrapper = exportable_vision("qwen3_vl", tower)
    grids = [[1, 8, 8]]
    dynamic = dynamic_layers(wrapper, [(random_patches(grids, wrapper.patch_weight.shape[1]), torch.tensor(grids))])
    assert "tower.blocks.1.mlp.linear_fc1.weight" not in dynamic
    assert {f"tower.blocks.{block}.attn.qkv.weight" for block in range(4)} <= dynamic
    assert not any("merger" in name for name in dynamic)


@pytest.mark.parametrize("dynamic", [True, False])
def test_int8_layers_stay_close(qwen3_vl: Path, tmp_path: Path, dynamic: bool) -> None:
    tower = load_model(qwen3_vl).model.visual
    wrapper = exportable_vision("qwen3_vl", tower)
    grids, model = torch.tensor([[1, 8, 8], [1, 4, 6]]), export_vision(wrapper)
    patches = random_patches(grids.tolist(), wrapper.patch_weight.shape[1])
    names = dynamic_layers(wrapper, [(patches, grids)]) if dynamic else frozenset()
    quantize_linears(model, BlockFormat(8, 32, symmetric=True), names)
    save_model(model, tmp_path / "vision.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "vision.onnx").graph.node)
    # Four layers in each of four blocks, and two in each of four mergers, which always keep block scales.
    assert kinds["MatMulInteger"] == len(names) == (16 if dynamic else 0)
    assert kinds["MatMulNBits"] == 24 - len(names) and kinds["Gemm"] == 1
    session = onnxruntime.InferenceSession(str(tmp_path / "vision.onnx"))
    ours = session.run(["image_features"], {"pixel_values": patches.numpy(), "image_grid_thw": grids.numpy()})[0]
    with torch.no_grad():
        theirs = tower(patches, grids).pooler_output.numpy()
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() > (0.99 if dynamic else 0.998)
    assert np.abs(ours - theirs).max() > 1e-4
