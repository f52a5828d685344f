"""Quantized checkpoints as other readers see them: values, names, and what the config says of each layer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from onnxruntime_genai.models.loaders.quant_model import QuantModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AwqConfig, GPTQConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from builders import build_qwen3_vl, copy_checkpoint
from edgetune_core.weightset import WeightSet
from edgetune_export.hf_checkpoint import write_checkpoint
from edgetune_export.hf_config import awq_config, compressed_config, gptq_config
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Modules, get_family
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.quant.layouts import LAYOUTS
from hf_reader import dense_tensors, tensors_of
from weight_sets import build_weight_set, memory_names

G32 = BlockFormat(4, 32, symmetric=False)
QWEN = cast(Modules, get_family("qwen3_vl").modules)
NORM = "model.language_model.layers.1.post_attention_layernorm.weight"


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen3-VL checkpoint whose vocabulary is rounded up, as published ones are: its head can be packed."""
    return build_qwen3_vl(tmp_path_factory.mktemp("padded"), vocabulary=1792)


def write(checkpoint: Path, weights: Path, folder: Path, layout: str, *, names: str = "hub") -> dict[str, Any]:
    """Write a checkpoint in a layout, under published names or those in transformers; returns its configuration."""
    config = json.loads((checkpoint / "config.json").read_text())
    modules = get_family(config["model_type"]).modules
    assert modules is not None
    loaded = WeightSet.load(weights)
    formats = {name: loaded.format(name) for name in loaded.names}
    quantization = {
        "gptq": lambda: gptq_config(formats, modules),
        "awq": lambda: awq_config(formats, modules),
        "compressed-tensors": lambda: compressed_config(formats, modules),
    }[layout]()
    folder.mkdir()
    prefixes = modules.hub_prefixes if names == "hub" else ()
    pack = LAYOUTS[layout].pack
    write_checkpoint(checkpoint, folder, loaded, modules, pack, config, quantization, prefixes=prefixes)
    return quantization


def load(config: Path, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Load float32 tensors under a checkpoint's names, all of them and no others."""
    settings: Any = AutoConfig.from_pretrained(config)
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    with torch.device("meta"):
        kind: Any = type(AutoModelForImageTextToText.from_config(settings))
    model, report = kind.from_pretrained(
        None, config=settings, state_dict=tensors, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model  # type: ignore[no-any-return]


def assert_is_the_set(model: nn.Module, checkpoint: Path, weights: Path) -> None:
    """Every parameter is the weight set's where it has one, and the checkpoint's where it has not."""
    loaded = WeightSet.load(weights)
    original = memory_names(checkpoint)
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight")
        expected = original.get(name, original["model.language_model.embed_tokens.weight"])
        if layer in loaded:
            expected = loaded.weight(layer).dequantize()
        elif name in loaded.overrides:
            expected = loaded.override(name)
        np.testing.assert_array_equal(parameter.detach().numpy(), expected, err_msg=name)


def mixed(name: str) -> BlockFormat:
    """Three widths, two group sizes, with and without zero points."""
    if name.endswith("down_proj"):
        return BlockFormat(8, 64, symmetric=True)
    return BlockFormat(4, 32, symmetric=True) if ".layers.1.mlp" in name else G32


def with_three_bits(name: str) -> BlockFormat:
    return BlockFormat(3, 32, symmetric=False) if ".layers.2." in name else mixed(name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("family", "names"), [("qwen3_vl_bf16", "hub"), ("qwen2_5_vl", "hub"), ("qwen2_5_vl", "transformers")]
)
def test_readers_get_the_sets_values(
    family: str, names: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    scaled = {NORM: memory_names(checkpoint)[NORM] * np.float32(1.0123)}
    weights = build_weight_set(checkpoint, tmp_path / "set", overrides=scaled)
    write(checkpoint, weights, tmp_path / "out", layout, names=names)
    dense = dense_tensors(tmp_path / "out")
    original = tensors_of(checkpoint)
    if names == "transformers":
        original = {rename(name): tensor for name, tensor in original.items()}
    assert set(dense) == set(original)
    quantized = {name for name in original if ".layers." in name and original[name].ndim == 2}
    for name, tensor in tensors_of(tmp_path / "out").items():
        if name in original and name not in quantized and "layers.1.post_attention" not in name:
            assert tensor.dtype == original[name].dtype and torch.equal(tensor, original[name])
    assert_is_the_set(load(tmp_path / "out", dense), checkpoint, weights)


@pytest.mark.parametrize(("layout", "choose", "bits"), [("gptq", with_three_bits, 4), ("compressed-tensors", mixed, 8)])
def test_mixed_formats_and_a_head_of_its_own(
    layout: str, choose: Callable[[str], BlockFormat], bits: int, padded: Path, tmp_path: Path
) -> None:
    assert json.loads((padded / "config.json").read_text())["tie_word_embeddings"] is True
    head = BlockFormat(bits, 32, symmetric=False)
    weights = build_weight_set(padded, tmp_path / "set", choose=choose, head=head)
    quantization = write(padded, weights, tmp_path / "out", layout)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and config["text_config"]["tie_word_embeddings"] is False
    if layout == "gptq":
        assert quantization["lm_head"] is True
    assert_is_the_set(load(tmp_path / "out", dense_tensors(tmp_path / "out")), padded, weights)


_QWEN2 = """
    lm_head.weight model.embed_tokens.weight model.norm.weight visual.patch_embed.proj.weight
    model.layers.N.input_layernorm.weight model.layers.N.post_attention_layernorm.weight
    model.layers.N.mlp.down_proj.weight model.layers.N.mlp.gate_proj.weight model.layers.N.mlp.up_proj.weight
    model.layers.N.self_attn.k_proj.bias model.layers.N.self_attn.k_proj.weight
    model.layers.N.self_attn.q_proj.bias model.layers.N.self_attn.q_proj.weight
    model.layers.N.self_attn.v_proj.bias model.layers.N.self_attn.v_proj.weight
    model.layers.N.self_attn.o_proj.weight"""
"""Names that Qwen2-VL and Qwen2.5-VL share: the language model's, and the embedding of patches."""

PUBLISHED = {
    # What model.safetensors.index.json of Qwen/Qwen2-VL-7B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct and
    # Qwen/Qwen3-VL-8B-Instruct list, with N for each number. Small Qwen3-VL models have no lm_head.
    "qwen2_vl": _QWEN2
    + """
        visual.blocks.N.attn.proj.bias visual.blocks.N.attn.proj.weight
        visual.blocks.N.attn.qkv.bias visual.blocks.N.attn.qkv.weight
        visual.blocks.N.mlp.fc1.bias visual.blocks.N.mlp.fc1.weight
        visual.blocks.N.mlp.fc2.bias visual.blocks.N.mlp.fc2.weight
        visual.blocks.N.norm1.bias visual.blocks.N.norm1.weight
        visual.blocks.N.norm2.bias visual.blocks.N.norm2.weight
        visual.merger.ln_q.bias visual.merger.ln_q.weight
        visual.merger.mlp.N.bias visual.merger.mlp.N.weight""",
    "qwen2_5_vl": _QWEN2
    + """
        visual.blocks.N.attn.proj.bias visual.blocks.N.attn.proj.weight
        visual.blocks.N.attn.qkv.bias visual.blocks.N.attn.qkv.weight
        visual.blocks.N.mlp.down_proj.bias visual.blocks.N.mlp.down_proj.weight
        visual.blocks.N.mlp.gate_proj.bias visual.blocks.N.mlp.gate_proj.weight
        visual.blocks.N.mlp.up_proj.bias visual.blocks.N.mlp.up_proj.weight
        visual.blocks.N.norm1.weight visual.blocks.N.norm2.weight visual.merger.ln_q.weight
        visual.merger.mlp.N.bias visual.merger.mlp.N.weight""",
    "qwen3_vl": """
        model.language_model.embed_tokens.weight model.language_model.norm.weight
        model.language_model.layers.N.input_layernorm.weight
        model.language_model.layers.N.post_attention_layernorm.weight
        model.language_model.layers.N.mlp.down_proj.weight model.language_model.layers.N.mlp.gate_proj.weight
        model.language_model.layers.N.mlp.up_proj.weight
        model.language_model.layers.N.self_attn.k_norm.weight model.language_model.layers.N.self_attn.k_proj.weight
        model.language_model.layers.N.self_attn.q_norm.weight model.language_model.layers.N.self_attn.q_proj.weight
        model.language_model.layers.N.self_attn.o_proj.weight model.language_model.layers.N.self_attn.v_proj.weight
        model.visual.patch_embed.proj.bias model.visual.patch_embed.proj.weight model.visual.pos_embed.weight
        model.visual.blocks.N.attn.proj.bias model.visual.blocks.N.attn.proj.weight
        model.visual.blocks.N.attn.qkv.bias model.visual.blocks.N.attn.qkv.weight
        model.visual.blocks.N.mlp.linear_fc1.bias model.visual.blocks.N.mlp.linear_fc1.weight
        model.visual.blocks.N.mlp.linear_fc2.bias model.visual.blocks.N.mlp.linear_fc2.weight
        model.visual.blocks.N.norm1.bias model.visual.blocks.N.norm1.weight
        model.visual.blocks.N.norm2.bias model.visual.blocks.N.norm2.weight
        model.visual.merger.linear_fc1.bias model.visual.merger.linear_fc1.weight
        model.visual.merger.linear_fc2.bias model.visual.merger.linear_fc2.weight
        model.visual.merger.norm.bias model.visual.merger.norm.weight
        model.visual.deepstack_merger_list.N.linear_fc1.bias model.visual.deepstack_merger_list.N.linear_fc1.weight
        model.visual.deepstack_merger_list.N.linear_fc2.bias model.visual.deepstack_merger_list.N.linear_fc2.weight
        model.visual.deepstack_merger_list.N.norm.bias model.visual.deepstack_merger_list.N.norm.weight""",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", PUBLISHED)
def test_names_are_the_published_ones(family: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Layers keep their published names; of a quantized one other tensors follow it."""
    checkpoint: Path = request.getfixturevalue(family)
    write(checkpoint, build_weight_set(checkpoint, tmp_path / "set"), tmp_path / "out", layout)
    names = {re.sub(r"\.\d+\.", ".N.", name) for name in dense_tensors(tmp_path / "out")}
    assert names == set(PUBLISHED[family].split())


def test_names_can_be_those_in_transformers(qwen2_5_vl: Path, tmp_path: Path) -> None:
    """Whether the source has the published names or those of transformers 5: GPTQModel knows only the latter."""
    weights = build_weight_set(qwen2_5_vl, tmp_path / "set")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(qwen2_5_vl))
    names = {name for name, _ in model.named_parameters()}
    published = load_file(qwen2_5_vl / "model.safetensors")
    assert any(name.startswith("visual.") for name in published)
    renamed = copy_checkpoint(qwen2_5_vl, tmp_path / "renamed")
    save_file({rename(name): tensor for name, tensor in published.items()}, renamed / "model.safetensors")
    for source in (qwen2_5_vl, renamed):
        write(source, weights, tmp_path / f"{source.name}-out", "gptq", names="transformers")
        assert set(dense_tensors(tmp_path / f"{source.name}-out")) == names


def rename(name: str) -> str:
    """A published Qwen2.5-VL name in transformers 5."""
    if name.startswith("visual."):
        return f"model.{name}"
    return re.sub(r"^model\.", "model.language_model.", name)


def test_shards_stay_shards(padded: Path, tmp_path: Path) -> None:
    weights = build_weight_set(padded, tmp_path / "set", head=G32)
    write(padded, weights, tmp_path / "whole", "gptq")
    source = copy_checkpoint(padded, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, source / file, {"format": "pt"})
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    write(source, weights, tmp_path / "out", "gptq")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], expected.pop(name)), name
    assert not expected
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.element_size() for tensor in tensors_of(tmp_path / "whole").values()
    )


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_awq_readers_leave_the_vision_tower_alone(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    weights = build_weight_set(checkpoint, tmp_path / "set")
    config = AwqConfig.from_dict(write(checkpoint, weights, tmp_path / "out", "awq"))
    assert (config.bits, config.group_size, config.format, config.zero_point) == (4, 32, "gemm", True)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = set(WeightSet.load(weights).names)
    assert quantized < linears
    kept = config.modules_to_not_convert
    # transformers compares from the start and from the end of a name …
    assert {name for name in linears if should_convert_module(name, kept)} == quantized
    # … vLLM looks for a part, in its own names, where the tower is "visual." and not below "model."
    theirs = {name: name.replace("model.visual.", "visual.") for name in linears}
    assert {name for name in linears if not any(part in theirs[name] for part in kept)} == quantized


@pytest.mark.parametrize("head", [None, G32])
def test_compressed_tensors_finds_the_layers(head: BlockFormat | None, qwen3_vl: Path, tmp_path: Path) -> None:
    """All linear layers but those that an expression leaves out, by their names in transformers and in vLLM."""
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", head=head))
    quantization = compressed_config({name: weights.format(name) for name in weights.names}, QWEN)
    (group,) = quantization["config_groups"].values()
    assert group["format"] == quantization["format"] == "pack-quantized"
    assert group["targets"] == ["Linear", *([r"re:(.*\.)?lm_head"] if head else [])]
    assert all(entry.startswith("re:") for entry in quantization["ignore"])
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(qwen3_vl))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ignored = [entry.removeprefix("re:") for entry in quantization["ignore"]]
    for prefix in ("", "model."):
        theirs = {name: name.removeprefix(prefix) for name in linears}
        kept = {name for name in linears if not any(re.match(entry, theirs[name]) for entry in ignored)}
        assert kept == set(weights.names)


def test_gptq_says_which_blocks(qwen2_5_vl: Path, tmp_path: Path) -> None:
    weights = build_weight_set(qwen2_5_vl, tmp_path / "set")
    quantization = write(qwen2_5_vl, weights, tmp_path / "out", "gptq")
    config = GPTQConfig.from_dict(quantization)
    assert (config.bits, config.group_size, config.sym, config.desc_act, config.format) == (4, 32, False, False, "gptq")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(qwen2_5_vl))
    # optimum replaces every linear layer below this name, and guesses it when it is not there
    blocks = model.get_submodule(config.block_name_to_quantize)
    below = {
        f"{config.block_name_to_quantize}.{name}" for name, m in blocks.named_modules() if isinstance(m, nn.Linear)
    }
    assert below == set(WeightSet.load(weights).names)
    # GPTQModel takes asymmetric zero points of this layout only from writers that name its 0.9.0 or later
    assert "gptqmodel:0.9.0" in quantization["meta"]["quantizer"]


SPELLINGS = ("model.language_model.layers.{}.{}", "language_model.model.layers.{}.{}", "model.layers.{}.{}")
FUSED = {"self_attn.qkv_proj": "self_attn.q_proj", "mlp.gate_up_proj": "mlp.up_proj"}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_overrides_reach_layers_under_every_readers_name(spelling: str, qwen3_vl: Path, tmp_path: Path) -> None:
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", choose=mixed, head=G32))
    formats = {name: weights.format(name) for name in weights.names}
    quantization = gptq_config(formats, QWEN)
    common = (quantization["bits"], quantization["group_size"], quantization["sym"])
    assert common == (4, 32, False)
    roles = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", *FUSED)
    for layer in range(4):
        for role in roles:
            fmt = formats[f"model.language_model.layers.{layer}.{FUSED.get(role, role)}"]
            hits = [
                (entry["bits"], entry["group_size"], entry["sym"])
                for pattern, entry in quantization["dynamic"].items()
                if re.match(pattern.removeprefix("+:"), spelling.format(layer, role))
            ]
            told = (fmt.bits, fmt.block, fmt.symmetric)
            assert hits == ([] if told == common else [told]), (layer, role)
    vision = ("model.visual.blocks.1.attn.qkv", "visual.blocks.1.mlp.linear_fc1", "visual.merger.linear_fc2")
    for name in vision:
        matching = [pattern for pattern in quantization["dynamic"] if re.match(pattern[2:], name)]
        assert len(matching) == 1 and matching[0].startswith("-:")  # GPTQModel's way to leave layers out
        assert any(re.match(entry.removeprefix("re:"), name) for entry in compressed_config(formats, QWEN)["ignore"])


@pytest.mark.parametrize(("layout", "choose"), [("gptq", mixed), ("awq", lambda name: G32)])
def test_onnxruntime_genai_reads_the_same_codes(
    layout: str, choose: Callable[[str], BlockFormat], qwen3_vl: Path, tmp_path: Path
) -> None:
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", choose=choose))
    quantization = write(qwen3_vl, weights.folder, tmp_path / "out", layout)
    read: Any = QuantModel.from_pretrained(
        layout,
        input_path=str(tmp_path / "out"),
        quant_attrs={"config": quantization, "use_g_idx": False},
        q_size=128,
        kv_size=64,
        intermediate_size=256,
        num_layers=4,
    )
    for name in weights.names:
        number, _, role = name.removeprefix("model.language_model.layers.").partition(".")
        module = read.layers[int(number)]
        for part in role.split("."):
            module = getattr(module, part)
        expected = weights.weight(name)
        rows = len(expected.codes)
        codes = module.qweight.numpy().reshape(rows, -1)
        np.testing.assert_array_equal(codes, expected.packed_codes().reshape(rows, -1))
        np.testing.assert_array_equal(module.scales.float().numpy().reshape(rows, -1), expected.scales)
        points = module.qzeros.numpy().reshape(rows, -1)
        if expected.bits == 4:
            points = np.stack([points & 15, points >> 4], -1).reshape(rows, -1)
        np.testing.assert_array_equal(points, expected.all_zero_points())


@pytest.mark.parametrize(
    ("choose", "head", "message"),
    [
        (mixed, None, "AWQ checkpoints hold 4 bits only, the weight set has 4, 8"),
        (lambda name: BlockFormat(4, 64 if "mlp" in name else 32, False), None, "have one group size, .* has 32, 64"),
        (lambda name: G32, G32, "quantizes the language model head, which no reader of AWQ"),
    ],
)
def test_awq_refuses_what_it_cannot_say(
    choose: Callable[[str], BlockFormat], head: BlockFormat | None, message: str, qwen3_vl: Path, tmp_path: Path
) -> None:
    weights = build_weight_set(qwen3_vl, tmp_path / "set", choose=choose, head=head)
    with pytest.raises(InputError, match=message):
        write(qwen3_vl, weights, tmp_path / "out", "awq")


def test_a_head_that_does_not_fill_words_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    weights = build_weight_set(qwen3_vl, tmp_path / "set", head=G32)
    with pytest.raises(InputError, match="lm_head: GPTQ's layout needs a multiple of 8 outputs, not 1779") as caught:
        write(qwen3_vl, weights, tmp_path / "out", "gptq")
    assert "--head 16" in str(caught.value.hint)


def test_a_set_of_another_checkpoint_is_refused(qwen3_vl: Path, qwen2_5_vl: Path, tmp_path: Path) -> None:
    weights = build_weight_set(qwen3_vl, tmp_path / "set")
    with pytest.raises(InputError, match=r"no tensor for model\.language_model\.layers\.3\.mlp\.down_proj"):
        write(qwen2_5_vl, weights, tmp_path / "out", "gptq")
