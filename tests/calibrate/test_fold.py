"""Factors moved between layers leave the model's answers as they are, and reach the layers that they should."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from calibrate.walks import LLAMA, layer_inputs, llama, put, second_moments, walk
from edgetune_calibrate.fold import Seam, fold, seams
from edgetune_calibrate.quantize import DecoderSettings
from edgetune_calibrate.solve import LinearGroup, SolveSettings
from edgetune_runtime.families import get_family

PAIRS = {"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"}
MODULES = replace(LLAMA, linear_pairs=PAIRS)
NORMS = [
    Seam("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Seam("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
]
VALUES, MLP = Seam("self_attn.v_proj", ("self_attn.o_proj",)), Seam("mlp.up_proj", ("mlp.down_proj",))


def biased() -> nn.Module:
    """Return a small model with as many value as query heads, and biases on queries, keys and values."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model: nn.Module = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.eval()


def test_grouped_values_are_no_seam() -> None:
    assert list(seams(MODULES, llama().get_submodule("model.layers.0"))) == [*NORMS, MLP]
    assert list(seams(MODULES, biased().get_submodule("model.layers.0"))) == [*NORMS, VALUES, MLP]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_families_name_their_pairs(family: str) -> None:
    modules = get_family(family).modules
    assert modules is not None
    assert modules.linear_pairs == PAIRS
    assert set(PAIRS) | set(PAIRS.values()) <= set(modules.linears)


def test_answers_stay_and_readers_see_inputs_divided_by_the_factors() -> None:
    model = biased()
    batch = {"input_ids": torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))}
    with torch.no_grad():
        before = model(**batch).logits
    for seam in [*NORMS, VALUES, MLP]:
        folded = copy.deepcopy(model)
        block = folded.get_submodule("model.layers.1")
        columns = block.get_submodule(seam.readers[0]).get_parameter("weight").shape[1]
        factors = torch.empty(columns).uniform_(0.25, 4, generator=torch.Generator().manual_seed(2))
        changed = fold(block, seam, factors)
        bias = ["self_attn.v_proj.bias"] if seam == VALUES else []
        assert changed == ([f"{seam.source}.weight"] if seam in NORMS else bias)
        with torch.no_grad():
            torch.testing.assert_close(folded(**batch).logits, before, atol=1e-5, rtol=1e-4)
        for reader in seam.readers:
            name = f"model.layers.1.{reader}"
            [seen], [expected] = layer_inputs(folded, name, [batch]), layer_inputs(model, name, [batch])
            torch.testing.assert_close(seen, expected / factors, atol=1e-5, rtol=1e-4)
        same = {key for key, value in folded.state_dict().items() if torch.equal(value, model.state_dict()[key])}
        moved = {f"model.layers.1.{name}.weight" for name in (seam.source, *seam.readers)}
        assert set(model.state_dict()) - same == moved | {f"model.layers.1.{name}" for name in changed}


@pytest.mark.parametrize("compensate", [False, True])
def test_a_walk_with_factors_solves_folded_layers_and_keeps_what_it_changed(compensate: bool) -> None:
    model = biased()
    batches = [{"input_ids": torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))}]
    fine = SolveSettings(method="awq", bits=8, group_size=32)

    def factors(group: LinearGroup, settings: SolveSettings) -> Tensor:
        assert settings == fine
        return group.hessian.diagonal().pow(0.25)

    quantized = copy.deepcopy(model)
    settings = DecoderSettings(fine, compensate=compensate)
    blocks, groups = walk(quantized, MODULES, batches, settings, factors=factors)
    names = {"input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.v_proj.bias"}
    for index, block in enumerate(blocks):
        assert set(block.overrides) == {f"model.layers.{index}.{name}" for name in names}

    # A copy that is given the set by hand is the walked model, and at 8 bits nearly the first one.
    copied = copy.deepcopy(model)
    for block in blocks:
        put(copied, block.weights)
        for name, values in block.overrides.items():
            copied.get_parameter(name).data.copy_(torch.from_numpy(values))
    with torch.no_grad():
        logits, walked, first = (each(**batches[0]).logits for each in (copied, quantized, model))
    assert torch.equal(logits, walked)
    assert (logits - first).norm() < 0.05 * first.norm()

    # Every layer saw inputs divided by its factors, and the unquantized model's too.
    group = next(group for group in groups if group.names[0] == "model.layers.0.self_attn.o_proj")
    [plain] = layer_inputs(model, group.names[0], batches)
    scale = second_moments([plain]).diagonal().pow(0.25)
    expected = second_moments([plain / scale])
    assert (group.hessian - expected).norm() < 0.05 * expected.norm()
    if compensate:
        assert group.cross is not None
        assert group.cross.norm() < 0.05 * expected.norm()

    rest, _ = walk(copy.deepcopy(model), MODULES, batches, settings, factors=factors, finished=blocks[:1])
    for name, weight in rest[0].weights.items():
        assert (weight.codes == blocks[1].weights[name].codes).all()
        assert (weight.scales == blocks[1].weights[name].scales).all()
    for name, values in rest[0].overrides.items():
        assert (values == blocks[1].overrides[name]).all()
