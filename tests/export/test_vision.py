"""The exported vision encoders against the stock towers of transformers, on grids of every kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from edgetune_calibrate.vision import InputRanges
from edgetune_export.graph import save_model
from edgetune_export.vision.attention import FUSED, ONE_FRAME, STANDARD, Operators
from edgetune_export.vision.int8 import Seen, dynamic_layers, quantize_linears, static_layers
from edgetune_export.vision.products import Dynamic, Product, Range, by_block, static, static_standard, weights_only
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat
from reference import load_model, written_tower

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
FAMILIES = ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"]


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operators", [FUSED, STANDARD, ONE_FRAME])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_all_ways_to_attend_give_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, operators: Operators, dtype: ir.DataType
) -> None:
    loaded = load_model(request.getfixturevalue(family))
    tower, one_frame = loaded.model.visual, operators is ONE_FRAME
    save_model(written_tower(loaded, operators, dtype), tmp_path / "vision.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "vision.onnx"))
    for name in ("smallest", "large") if one_frame else ("smallest", "large", "ragged"):
        grids = torch.tensor(GRIDS[name])
        patches = random_patches(GRIDS[name], session.get_inputs()[0].shape[1])
        with torch.no_grad():
            theirs = tower(patches, grids).pooler_output.numpy()
        ours = session.run(["image_features"], {"pixel_values": patches.numpy(), "image_grid_thw": grids.numpy()})[0]
        limit = 5e-5 if dtype == ir.DataType.FLOAT else 0.02
        np.testing.assert_allclose(ours, theirs, atol=limit * max(1.0, float(np.abs(theirs).max())))


def test_an_activation_that_cannot_be_written_is_refused(qwen3_vl: Path) -> None:
    model = load_model(qwen3_vl)
    model.model.visual.config.hidden_act = "relu"
    with pytest.raises(InputError, match="vision activation 'relu' is not supported"):
        written_tower(model)


def test_layers_with_outliers_keep_block_scales(qwen3_vl: Path) -> None:
    tower = load_model(qwen3_vl).model.visual
    with torch.no_grad():  # a value that one scale has to stretch to, and that the output never sees
        tower.blocks[1].norm2.weight[0] = 1000
        tower.blocks[1].mlp.linear_fc1.weight[:, 0] = 0
    grids = [[1, 8, 8]]
    dynamic = dynamic_layers(seen(tower, random_patches(grids, patch_size(tower)), torch.tensor(grids)))
    assert "tower.blocks.1.mlp.linear_fc1.weight" not in dynamic
    assert {f"tower.blocks.{block}.attn.qkv.weight" for block in range(2)} <= dynamic
    assert not any("merger" in name for name in dynamic)


def seen(tower: Any, patches: torch.Tensor, grids: torch.Tensor) -> Seen:
    """The tower, with patches to try it on."""
    return Seen(tower, "blocks", tower, [{"hidden_states": patches, "grid_thw": grids}])


def names_of(tower: Any) -> list[str]:
    """The weights of the transformer blocks' linear layers: four in each block."""
    layers = [name for name, module in tower.named_modules() if isinstance(module, torch.nn.Linear)]
    return [f"tower.{name}.weight" for name in layers if name.startswith("blocks.")]


def ranges_of(tower: Any, patches: torch.Tensor, grids: torch.Tensor) -> dict[str, Range]:
    """What the tower's linear layers read, by the names of their weights."""
    with torch.no_grad(), InputRanges(torch.nn.ModuleDict({"tower": tower}), "tower") as watched:
        tower(patches, grids)
    return {f"{name}.weight": Range.of(span["low"], span["high"]) for name, span in watched.ranges().items()}


def patch_size(tower: Any) -> int:
    """Numbers in a flat patch."""
    return int(tower.patch_embed.proj.weight[0].numel())


@pytest.mark.parametrize("scheme", ["by block", "dynamic", "static", "static, standard", "weights only, standard"])
def test_int8_layers_stay_close(qwen3_vl: Path, tmp_path: Path, scheme: str) -> None:
    loaded = load_model(qwen3_vl)
    tower, model = loaded.model.visual, written_tower(loaded, STANDARD if "standard" in scheme else FUSED)
    grids = torch.tensor([[1, 8, 8], [1, 4, 6]])
    patches = random_patches(grids.tolist(), patch_size(tower))
    ranges = ranges_of(tower, patches, grids)
    names, slow = frozenset(names_of(tower)), by_block(BlockFormat(8, 32, symmetric=True))
    if scheme == "dynamic":
        assert dynamic_layers(seen(tower, patches, grids)) == names
    elif scheme.startswith("static"):
        assert static_layers(seen(tower, patches, grids), ranges) == names
    dynamic = Dynamic()
    writers: dict[str, Callable[[str], Product]] = {
        "by block": lambda name: slow,
        "dynamic": lambda name: dynamic if name in names else slow,
        "static": lambda name: static(ranges[name]) if name in names else slow,
        "static, standard": lambda name: static_standard(ranges[name]) if name in names else weights_only,
        "weights only, standard": lambda name: weights_only,
    }
    quantize_linears(model, writers[scheme])
    save_model(model, tmp_path / "vision.onnx")
    nodes = onnx.load(tmp_path / "vision.onnx").graph.node
    kinds = Counter(node.op_type for node in nodes)
    # Four layers in each of two blocks, and two in each of three mergers; one is the patch embedding.
    whole = {"MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "QuantizeLinear", "DequantizeLinear", "Gemm"}
    assert {kind: count for kind, count in kinds.items() if kind in whole} == {
        "by block": {"MatMulNBits": 14, "Gemm": 1},
        "dynamic": {"MatMulNBits": 6, "MatMulInteger": 8, "Gemm": 1},
        "static": {"MatMulNBits": 6, "QuantizeLinear": 8, "MatMulIntegerToFloat": 8, "Gemm": 1},
        "static, standard": {"QuantizeLinear": 8, "DequantizeLinear": 8 * 3 + 6, "Gemm": 15},
        "weights only, standard": {"DequantizeLinear": 14, "Gemm": 15},
    }[scheme]
    assert {node.domain for node in nodes} == {""} | (set() if "standard" in scheme else {"com.microsoft"})
    session = onnxruntime.InferenceSession(str(tmp_path / "vision.onnx"))
    ours = session.run(["image_features"], {"pixel_values": patches.numpy(), "image_grid_thw": grids.numpy()})[0]
    with torch.no_grad():
        theirs = tower(patches, grids).pooler_output.numpy()
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() > (0.998 if scheme in ("by block", "weights only, standard") else 0.99)
    assert np.abs(ours - theirs).max() > 1e-4


def test_both_static_forms_compute_the_same(qwen3_vl: Path, tmp_path: Path) -> None:
    """And what a layer computes is what its codes say, worked out in numpy."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((24, 32)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    states, span = rng.standard_normal((5, 32)).astype(np.float32), Range.of(-1.5, 2.0)
    scale = 3.5 / 255
    zero = round(1.5 / scale)
    codes = np.clip(np.round(states / scale) + zero, 0, 255) - zero
    steps = np.abs(weight).max(1) / 63
    expected = codes @ np.round(weight / steps[:, None]).T * scale * steps + bias
    for write in (static(span), static_standard(span)):
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node("Gemm", ["x", "p"], ["s"], transB=1),
                onnx.helper.make_node("Gemm", ["s", "w", "b"], ["y"], transB=1),
            ],
            "layer",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 32])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 24])],
            [
                onnx.numpy_helper.from_array(array, name)
                for name, array in (("p", np.eye(32, dtype=np.float32)), ("w", weight), ("b", bias))
            ],
        )
        model = ir.from_proto(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        )
        quantize_linears(model, {"w": write}.__getitem__)
        save_model(model, tmp_path / "layer.onnx")
        (actual,) = onnxruntime.InferenceSession(str(tmp_path / "layer.onnx")).run(None, {"x": states})
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_a_range_that_is_too_short_sends_the_layer_to_block_scales(qwen3_vl: Path) -> None:
    tower = load_model(qwen3_vl).model.visual
    grids = torch.tensor([[1, 8, 8]])
    patches = random_patches(grids.tolist(), patch_size(tower))
    ranges = ranges_of(tower, patches, grids)
    ranges["tower.blocks.1.attn.qkv.weight"] = Range.of(-0.1, 0.1)
    fixed = static_layers(seen(tower, patches, grids), ranges)
    assert set(names_of(tower)) - fixed == {"tower.blocks.1.attn.qkv.weight"}
