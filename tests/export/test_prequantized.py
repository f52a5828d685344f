"""Checkpoints that others quantized: read exactly in every spelling, or refused, never misread without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.cli import cli
from edgetune_core.weightset import WeightSet
from edgetune_export.checkpoint import open_checkpoint
from edgetune_export.hf_checkpoint import write_checkpoint
from edgetune_export.hf_config import awq_config, gptq_config
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import get_family
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.quant.layouts import LAYOUTS
from weight_sets import build_weight_set, memory_names

Tensors = dict[str, torch.Tensor]
Array = npt.NDArray[Any]
TEXT = "model.language_model.layers"
G32, G64 = BlockFormat(4, 32, symmetric=False), BlockFormat(4, 64, symmetric=False)


@pytest.fixture(scope="module")
def weights(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightSet:
    """The small Qwen3-VL's decoder in 4 bits, groups of 32 and 64."""
    folder = tmp_path_factory.mktemp("prequantized")
    choose: Callable[[str], BlockFormat] = lambda name: G64 if "mlp" in name else G32  # noqa: E731
    return WeightSet.load(build_weight_set(qwen3_vl, folder / "set", choose=choose))


def quantized(
    checkpoint: Path, weights: WeightSet, folder: Path, layout: str = "gptq", *, published: bool = True
) -> Path:
    """A checkpoint as a quantizer of GPTQ or AWQ leaves it."""
    config = json.loads((checkpoint / "config.json").read_text())
    modules = get_family(config["model_type"]).modules
    assert modules is not None
    formats = {name: weights.format(name) for name in weights.names}
    quantization = gptq_config(formats, modules) if layout == "gptq" else awq_config(formats, modules)
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    pack, prefixes = LAYOUTS[layout].pack, modules.hub_prefixes if published else ()
    write_checkpoint(checkpoint, folder, weights, modules, pack, config, quantization, prefixes=prefixes)
    return folder


def change(folder: Path, tensors: Callable[[Tensors], object] = dict, **quantization: Any) -> None:
    """Change a checkpoint's tensors in place, and fields of its quantization_config (None takes one out)."""
    path = folder / "model.safetensors"
    loaded = load_file(path)
    tensors(loaded)
    save_file({name: tensor.contiguous() for name, tensor in loaded.items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= quantization
    config["quantization_config"] = {k: v for k, v in config["quantization_config"].items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


def assert_reads_as(folder: Path, checkpoint: Path, weights: WeightSet) -> None:
    """Its model is the weight set's, and so are the codes that an export writes."""
    loaded = open_checkpoint(folder)
    assert loaded.quantized is not None
    original = memory_names(checkpoint)
    for name, parameter in loaded.model.named_parameters():
        layer = name.removesuffix(".weight")
        expected = weights.weight(layer).dequantize() if layer in weights else original[name]
        np.testing.assert_array_equal(loaded.streamed.values(parameter).float().numpy(), expected, err_msg=name)
    for name in weights.names:
        np.testing.assert_array_equal(loaded.quantized.weight(name).dequantize(), weights.weight(name).dequantize())


def plus_one(tensors: Tensors) -> None:
    """What turns v1 into v2: one more in every nibble."""
    for name in tensors:
        if name.endswith("qzeros"):
            tensors[name] = tensors[name] + 0x11111111


def test_gptq(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    assert_reads_as(quantized(qwen3_vl, weights, tmp_path / "gptq"), qwen3_vl, weights)


def test_gptq_v2_is_not_read_as_v1(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    change(folder, plus_one, checkpoint_format="gptq_v2")
    assert_reads_as(folder, qwen3_vl, weights)


def test_a_quantize_config_beside_the_checkpoint(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    """Older writers have no quantization_config in config.json."""
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    declared = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    told = {key: declared[key] for key in ("bits", "group_size", "sym", "desc_act")}
    (folder / "quantize_config.json").write_text(json.dumps(told))
    assert_reads_as(folder, qwen3_vl, weights)


@pytest.mark.parametrize("published", [True, False])
def test_awq_with_biases_under_published_names_and_others(qwen2_5_vl: Path, published: bool, tmp_path: Path) -> None:
    own = WeightSet.load(build_weight_set(qwen2_5_vl, tmp_path / "set"))
    folder = quantized(qwen2_5_vl, own, tmp_path / "awq", "awq", published=published)
    assert any(name.startswith("visual.") for name in load_file(folder / "model.safetensors")) == published
    assert_reads_as(folder, qwen2_5_vl, own)


def test_zero_biases_that_the_model_lacks(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    bias = f"{TEXT}.0.self_attn.o_proj.bias"
    change(folder, lambda tensors: tensors.update({bias: torch.zeros(128)}))
    assert_reads_as(folder, qwen3_vl, weights)
    change(folder, lambda tensors: tensors.update({bias: torch.ones(128)}))
    with pytest.raises(InputError, match=r"1 unexpected keys when loading, such as .*o_proj\.bias"):
        open_checkpoint(folder)


def reordered(tensors: Tensors, order: list[int]) -> None:
    """Name the groups of one layer in another order, as desc_act does where groups stay whole."""
    layer = f"{TEXT}.1.mlp.down_proj"
    for kind in ("scales", "qzeros"):
        tensors[f"{layer}.{kind}"] = tensors[f"{layer}.{kind}"][order]
    place = torch.argsort(torch.tensor(order)).int()
    tensors[f"{layer}.g_idx"] = place[tensors[f"{layer}.g_idx"].long()]


def test_desc_act_with_whole_groups_is_put_in_order(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    change(folder, lambda tensors: reordered(tensors, [2, 0, 3, 1]), desc_act=True)
    assert_reads_as(folder, qwen3_vl, weights)


def scattered(tensors: Tensors, layer: str, seed: int) -> Array:
    """Give a layer's inputs to groups at random, as desc_act does without static groups: [in], the input of before."""
    words = tensors[f"{layer}.qweight"].numpy().view(np.uint32)  # [in / 8, out], the first input in the lowest bits
    codes = (words[:, None, :] >> np.arange(0, 32, 4, dtype=np.uint32)[None, :, None]) & 15
    codes = codes.reshape(-1, words.shape[1])
    shuffled: Array = np.random.default_rng(seed).permutation(len(codes))
    moved = codes[shuffled].reshape(-1, 8, words.shape[1]) << np.arange(0, 32, 4, dtype=np.uint32)[None, :, None]
    tensors[f"{layer}.qweight"] = torch.from_numpy(np.bitwise_or.reduce(moved, axis=1).view(np.int32))
    tensors[f"{layer}.g_idx"] = tensors[f"{layer}.g_idx"][shuffled]
    return shuffled


@pytest.mark.parametrize(("form", "vision"), [("onnx", "fp32"), ("trt", "fp16")])
def test_desc_act_with_scattered_groups_reorders_the_states(
    form: str, vision: str, qwen3_vl: Path, tmp_path: Path
) -> None:
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", choose=lambda _: G64))  # TensorRT's smallest
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    names = {f"{TEXT}.1.self_attn.{letter}_proj": 0 for letter in "qkv"} | {f"{TEXT}.1.mlp.down_proj": 1}
    orders: dict[str, Array] = {}
    change(
        folder, lambda t: orders.update({name: scattered(t, name, seed) for name, seed in names.items()}), desc_act=True
    )
    loaded = open_checkpoint(folder)
    for name, order in orders.items():
        dense = loaded.streamed.values(loaded.model.get_submodule(name).get_parameter("weight")).numpy()
        np.testing.assert_array_equal(dense, weights.weight(name).dequantize()[:, order])
    arguments = ["export", "--checkpoint", str(folder), "--format", form, "--vision-precision", vision]
    cli.main([*arguments, "--output", str(tmp_path / "bundle")], standalone_mode=False)  # compares with that model
    graph = onnx.load(next((tmp_path / "bundle").rglob("decoder*.onnx")), load_external_data=False).graph
    shape = [len(order) for order in (orders[f"{TEXT}.1.self_attn.q_proj"], orders[f"{TEXT}.1.mlp.down_proj"])]
    assert [list(one.dims) for one in graph.initializer if one.name.endswith(".order")] == [[size] for size in shape]


def test_a_layer_with_its_inputs_in_another_order_is_a_product_of_its_own(
    qwen3_vl: Path, weights: WeightSet, tmp_path: Path
) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    change(folder, lambda tensors: scattered(tensors, f"{TEXT}.1.self_attn.k_proj", 0), desc_act=True)
    arguments = ["export", "--checkpoint", str(folder), "--output", str(tmp_path / "bundle")]
    cli.main(arguments, standalone_mode=False)  # compares with transformers' model of the same codes
    graph = onnx.load(tmp_path / "bundle/onnx/decoder_model_merged.onnx", load_external_data=False).graph
    names = {one.name for one in graph.initializer}
    assert "model.layers.1.self_attn.k_proj.order" in names
    assert {f"model.layers.1.self_attn.{name}.weight_codes" for name in ("q_proj_v_proj", "k_proj")} <= names


def test_groups_of_uneven_sizes_are_refused(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    name = f"{TEXT}.1.mlp.down_proj.g_idx"

    def uneven(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][0] = 1

    change(folder, uneven, desc_act=True)
    with pytest.raises(
        InputError, match=r"1\.mlp\.down_proj: its groups, as g_idx has them, are not 4 of 64 inputs each"
    ):
        open_checkpoint(folder)


def test_one_group_for_all_inputs_is_cut(qwen3_vl: Path, tmp_path: Path) -> None:
    whole: Callable[[str], BlockFormat] = lambda name: BlockFormat(  # noqa: E731
        4, 256 if "down_proj" in name else 128, symmetric=True
    )
    own = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", choose=whole))
    folder = quantized(qwen3_vl, own, tmp_path / "gptq")
    change(folder, group_size=-1, dynamic=None)
    assert_reads_as(folder, qwen3_vl, own)
    read = open_checkpoint(folder).quantized
    assert read is not None
    assert {read.format(name) for name in read.names} == {BlockFormat(4, 128, symmetric=True)}


def overflowed(tensors: Tensors) -> None:
    tensors[f"{TEXT}.0.mlp.up_proj.qzeros"][0, 0] |= 15


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        (dict, {"checkpoint_format": "marlin"}, "quantized with gptq, format marlin, which is not among those"),
        (dict, {"quant_method": "bitsandbytes"}, "quantized with bitsandbytes"),
        (overflowed, {}, r"0\.mlp\.up_proj: a GPTQ zero point is stored as all ones"),
        (
            lambda tensors: tensors.pop(f"{TEXT}.0.mlp.up_proj.scales"),
            {},
            r"no tensor model\.language_model\.layers\.0\.mlp\.up_proj\.scales",
        ),
        (
            lambda tensors: tensors.update({"model.visual.blocks.0.attn.qkv.qweight": torch.zeros(8, 8).int()}),
            {},
            r"model\.visual\.blocks\.0\.attn\.qkv is quantized, but only linear layers of the decoder",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(
    tensors: Callable[[Tensors], object],
    quantization: dict[str, Any],
    message: str,
    qwen3_vl: Path,
    weights: WeightSet,
    tmp_path: Path,
) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    change(folder, tensors, **quantization)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_export_writes_the_same_weights_as_from_the_set(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    change(folder, plus_one, checkpoint_format="gptq_v2")
    for source, extra in ((folder, []), (qwen3_vl, ["--weights", str(weights.folder)])):
        arguments = ["export", "--checkpoint", str(source), *extra, "--vision-precision", "fp32"]
        cli.main([*arguments, "--output", str(tmp_path / f"{source.name}-onnx")], standalone_mode=False)
    ours, theirs = tmp_path / "gptq-onnx", tmp_path / f"{qwen3_vl.name}-onnx"
    graph = "onnx/decoder_model_merged.onnx"
    assert (ours / graph).read_bytes() == (theirs / graph).read_bytes()
    assert "quantization_config" not in json.loads((ours / "config.json").read_text())
    bundle = json.loads((ours / "manifest.json").read_text())["result"]["bundle"]
    assert bundle["calibration"]["method"] == "gptq" and bundle["precision"] == "int4"


def test_layouts_are_not_converted_and_sets_not_mixed(qwen3_vl: Path, weights: WeightSet, tmp_path: Path) -> None:
    folder = quantized(qwen3_vl, weights, tmp_path / "gptq")
    arguments = ["export", "--checkpoint", str(folder), "--weights", str(weights.folder)]
    with pytest.raises(InputError, match=r"is quantized already, and .* is a weight set"):
        cli.main([*arguments, "--output", str(tmp_path / "out")], standalone_mode=False)
