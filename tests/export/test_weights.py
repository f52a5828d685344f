"""What is written from a weight set: exactly its values, fused, mixed and widened as the graph needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgetune.cli import cli
from edgetune_core.weightset import WeightSet
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects import Dialect
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.dialects.plain import PlainDialect
from edgetune_export.decoder.dialects.trt import DecomposedTrtDialect
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.graph import GraphBuilder, save_model
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import read_manifest
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight
from reference import apply_rounding, apply_weights, decoder_weights, load_model
from weight_sets import build_weight_set, memory_names

TEXT = "model.language_model"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def mixed(name: str) -> BlockFormat | None:
    """A format for each role, as a budget would choose them; one layer is left out."""
    if name.endswith("layers.1.mlp.down_proj"):
        return None
    if "self_attn.o_proj" in name:
        return BlockFormat(3, 32, symmetric=True)
    if "down_proj" in name:
        return BlockFormat(3, 64, symmetric=False)
    if "gate_proj" in name or "up_proj" in name:
        return BlockFormat(8, 64, symmetric=True)
    return BlockFormat(4, 32, symmetric="layers.0." in name)


@pytest.fixture(scope="module")
def mixed_set(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightSet:
    """Formats of every kind, the tied head in 8 bits, one norm replaced."""
    norm = np.linspace(0.5, 1.5, 128, dtype=np.float32)
    replaced = {f"{TEXT}.layers.0.input_layernorm.weight": norm, f"{TEXT}.norm.weight": norm[::-1]}
    folder = tmp_path_factory.mktemp("mixed") / "set"
    head = BlockFormat(8, 32, symmetric=False)
    return WeightSet.load(build_weight_set(qwen3_vl, folder, choose=mixed, head=head, overrides=replaced))


def test_products_take_the_sets_values(qwen3_vl: Path, mixed_set: WeightSet) -> None:
    model = load_model(qwen3_vl)
    decoder = decoder_weights(model, weights=mixed_set)
    joint = decoder.linear(0, *QKV)
    parts = [mixed_set.weight(f"{TEXT}.layers.0.{role}").dequantize() for role in QKV]
    np.testing.assert_array_equal(joint.blocks().dequantize(), np.concatenate(parts))
    for layer, roles, bits, symmetric in (
        (0, QKV, 4, True),
        (1, QKV, 4, False),
        (2, ("self_attn.o_proj",), 4, True),
        (2, ("mlp.down_proj",), 4, False),
        (3, ("mlp.gate_proj", "mlp.up_proj"), 8, True),
    ):
        linear = decoder.linear(layer, *roles)
        weight = linear.blocks()
        assert linear.format is not None
        assert (
            (weight.bits, weight.zero_points is None)
            == (bits, symmetric)
            == (linear.format.bits, linear.format.symmetric)
        )
        expected = np.concatenate([mixed_set.weight(f"{TEXT}.layers.{layer}.{role}").dequantize() for role in roles])
        np.testing.assert_array_equal(weight.dequantize(), expected)
    assert decoder.linear(1, "mlp.down_proj").format is None
    np.testing.assert_array_equal(decoder.head().blocks().dequantize(), mixed_set.weight("lm_head").dequantize())
    norm = decoder.norm(0, "input_layernorm")
    assert norm is not None and norm[0] == 0.5 and norm[-1] == 1.5
    final = decoder.norm(None, "norm")
    assert final is not None and final[0] == 1.5


@pytest.mark.parametrize(
    "dialect",
    [
        lambda graph, spec: OrtDialect(graph, spec, ir.DataType.FLOAT, accuracy_level=0),
        lambda graph, spec: PlainDialect(graph, spec, ir.DataType.FLOAT),
        lambda graph, spec: DecomposedTrtDialect(graph, spec, 256),
    ],
    ids=["ort", "plain", "trt"],
)
def test_each_layer_is_read_once_while_a_graph_is_written(
    dialect: Callable[[GraphBuilder, DecoderSpec], Dialect],
    qwen3_vl: Path,
    mixed_set: WeightSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its codes, scales and zero points come of one read: rounding a layer again for each would take thrice as long."""
    decoder = decoder_weights(load_model(qwen3_vl), weights=mixed_set)
    model = build_decoder(decoder, dialect)
    reads: Counter[str] = Counter()
    read = WeightSet.weight

    def counted(self: WeightSet, name: str) -> BlockWeight:
        reads[name] += 1
        return read(self, name)

    monkeypatch.setattr(WeightSet, "weight", counted)
    save_model(model, tmp_path / "decoder.onnx", inline_limit=0)
    assert set(reads.values()) == {1}
    assert set(reads) == set(mixed_set.names)


def test_the_dequantized_model_is_the_set_and_keeps_its_embedding(qwen3_vl: Path, mixed_set: WeightSet) -> None:
    model, original = load_model(qwen3_vl), memory_names(qwen3_vl)
    apply_weights(model, mixed_set)
    state = model.state_dict()
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if layer in mixed_set:
            expected = mixed_set.weight(layer).dequantize()
        elif name in mixed_set.overrides:
            expected = mixed_set.override(name)
        else:
            expected = original[name]
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
    assert not torch.equal(state["lm_head.weight"], state[f"{TEXT}.embed_tokens.weight"])


def test_layers_outside_the_set_are_rounded_in_the_reference_too(qwen2_5_vl: Path, weight_set_2_5: Path) -> None:
    model, original = load_model(qwen2_5_vl), memory_names(qwen2_5_vl)["lm_head.weight"]
    fmt = BlockFormat(8, 32, symmetric=True)
    weights = WeightSet.load(weight_set_2_5)
    decoder = decoder_weights(model, head_format=fmt, weights=weights)
    assert [linear.name for linear in decoder.rounded()] == ["lm_head"]
    written = decoder.head().blocks().dequantize()
    apply_rounding(model, decoder)
    head = model.lm_head.weight.numpy()
    np.testing.assert_array_equal(head, written)
    assert 0 < np.abs(head - original).max() < np.abs(original).max() / 100


def test_biases_of_the_set_replace_the_checkpoints(qwen2_5_vl: Path, tmp_path: Path) -> None:
    bias = np.arange(64, dtype=np.float32)
    replaced = {f"{TEXT}.layers.1.self_attn.k_proj.bias": bias}
    weights = WeightSet.load(build_weight_set(qwen2_5_vl, tmp_path / "set", overrides=replaced))
    model, original = load_model(qwen2_5_vl), memory_names(qwen2_5_vl)
    joint = decoder_weights(model, weights=weights).linear(1, *QKV).bias()
    query, value = (original[f"{TEXT}.layers.1.self_attn.{role}.bias"] for role in ("q_proj", "v_proj"))
    assert joint is not None
    np.testing.assert_array_equal(joint, np.concatenate([query, bias, value]))


def parts_apart(name: str) -> BlockFormat:
    return BlockFormat(4, 64 if name.endswith("k_proj") else 32, symmetric=False)


def test_layers_of_one_format_are_one_product(qwen3_vl: Path, tmp_path: Path) -> None:
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", choose=parts_apart))
    decoder = decoder_weights(load_model(qwen3_vl), weights=weights)
    query, key, value = QKV
    assert [names for _, names in decoder.products(0, *QKV)] == [(query, value), (key,)]
    assert [names for _, names in decoder_weights(load_model(qwen3_vl)).products(0, *QKV)] == [QKV]
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj, .* in different formats"):
        decoder.linear(0, *QKV)


@pytest.mark.parametrize("form", ["onnx", "gptq"])
def test_layers_of_different_formats_are_exported(form: str, qwen3_vl: Path, tmp_path: Path) -> None:
    """The self-check compares with transformers, which computes with the weight set's own values."""
    build_weight_set(qwen3_vl, tmp_path / "set", choose=parts_apart)
    words = ["--checkpoint", str(qwen3_vl), "--weights", str(tmp_path / "set"), "--format", form]
    cli.main(["export", *words, "--output", str(tmp_path / "bundle")], standalone_mode=False)
    exact = read_manifest(tmp_path / "bundle")["result"]["bundle"]["parity"]["exact"]
    assert exact["answers_equal"] == exact["answers"] > 0


@pytest.mark.parametrize("change", ["depth", "width"])
def test_a_set_of_another_model_is_refused(change: str, qwen3_vl: Path, tmp_path: Path) -> None:
    from builders import build_qwen3_vl

    sizes: dict[str, Any] = {"depth": {"layers": 5}, "width": {"hidden": 256}}[change]
    other = build_qwen3_vl(tmp_path / "other", **sizes)
    weights = WeightSet.load(build_weight_set(other, tmp_path / "set"))
    model = load_model(qwen3_vl)
    told = {"depth": r"layers\.4\..* which the checkpoint has not", "width": "in the checkpoint"}[change]
    with pytest.raises(InputError, match=told):
        decoder_weights(model, weights=weights).linear(0, *QKV).blocks()
