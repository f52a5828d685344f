"""What each layer is solved on, against hooks in plain forwards of a copy that is quantized by hand."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calibrate.walks import (
    LLAMA,
    RTN,
    layer_inputs,
    llama,
    load,
    picture_batches,
    put,
    references,
    second_moments,
    walk,
)
from edgetune_calibrate.linears import input_groups
from edgetune_calibrate.quantize import DecoderSettings
from edgetune_calibrate.solve import SolveSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import get_family
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockFormat

HEAD8 = SolveSettings(method="rtn", bits=8, group_size=32)


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def modules(family: str) -> Modules:
    found = get_family(family).modules
    assert found is not None
    return found


@pytest.fixture
def model(family: str, request: pytest.FixtureRequest) -> nn.Module:
    return load(request.getfixturevalue(family))


def close(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> bool:
    """Whether all entries agree to 1e-6 of the largest of them."""
    largest = (expected if scale is None else scale).abs().max()
    return bool((actual.double() - expected).abs().max() <= 1e-6 * largest)


def test_every_layer_is_solved_on_what_the_quantized_layers_before_it_give(model: nn.Module, modules: Modules) -> None:
    batches = picture_batches(model)
    quantized = copy.deepcopy(model)
    blocks, groups = walk(quantized, modules, batches, DecoderSettings(RTN, head=HEAD8))
    layers = len(list(model.get_submodule(modules.blocks).children()))
    names = [f"{modules.blocks}.{i}.{name}" for i in range(layers) for name in modules.linears]
    assert [name for group in groups for name in group.names] == [*names, "lm_head"]
    for group, inputs in references(model, groups, blocks, batches):
        assert group.tokens == sum(batch["input_ids"].numel() for batch in batches)
        assert close(group.hessian, second_moments(inputs)), group.names
        for name, weight in group.weights.items():
            assert torch.equal(weight, model.get_submodule(name).get_parameter("weight"))


def test_chaining_the_blocks_by_hand_would_lose_deepstack(qwen3_vl: Path) -> None:
    model = load(qwen3_vl)
    modules = get_family("qwen3_vl").modules
    assert modules is not None
    batches = picture_batches(model)
    blocks, groups = walk(copy.deepcopy(model), modules, batches, DecoderSettings(RTN))
    put(model, blocks[0].weights)
    group = next(group for group in groups if "layers.1.self_attn.q_proj" in group.names[0])
    outputs: list[Tensor] = []
    first, second = list(model.get_submodule(modules.blocks).children())[:2]
    handle = first.register_forward_hook(lambda *args: outputs.append(args[2]))
    right = second_moments(layer_inputs(model, group.names[0], batches))
    handle.remove()
    chained = second_moments([second.get_submodule("input_layernorm")(output.detach()) for output in outputs])
    assert close(group.hessian, right)
    assert (group.hessian - chained).norm() > 0.05 * right.norm()


def test_without_true_sequential_a_block_is_solved_on_its_own_unquantized_layers(
    model: nn.Module, modules: Modules
) -> None:
    batches = picture_batches(model)
    blocks, groups = walk(copy.deepcopy(model), modules, batches, DecoderSettings(RTN, true_sequential=False))
    reference = copy.deepcopy(model)
    for block in blocks:
        for group in groups[: len(input_groups(modules))]:
            assert close(group.hessian, second_moments(layer_inputs(reference, group.names[0], batches))), group.names
        del groups[: len(input_groups(modules))]
        put(reference, block.weights)
    assert groups == []


def test_the_unquantized_inputs_come_from_the_unquantized_model(model: nn.Module, modules: Modules) -> None:
    batches = picture_batches(model)
    settings = DecoderSettings(RTN, head=HEAD8, compensate=True)
    blocks, groups = walk(copy.deepcopy(model), modules, batches, settings)
    for group, inputs in references(model, groups, blocks, batches):
        seen = torch.cat([one.flatten(0, 1) for one in inputs]).double()
        originals = layer_inputs(model, group.names[0], batches)
        original = torch.cat([one.flatten(0, 1) for one in originals]).double()
        assert group.cross is not None
        assert close(group.hessian, seen.T @ seen / len(seen))
        assert close(group.cross, (original - seen).T @ seen / len(seen), scale=group.hessian), group.names


def test_the_model_ends_as_its_quantized_self_and_a_tied_embedding_stays(model: nn.Module, modules: Modules) -> None:
    batches = picture_batches(model)
    quantized = copy.deepcopy(model)
    blocks, _ = walk(quantized, modules, batches, DecoderSettings(RTN, head=HEAD8))
    reference = copy.deepcopy(model)
    for block in blocks:
        put(reference, block.weights)
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(quantized(**batch).logits, reference(**batch).logits)
    embedding = f"{modules.text_root}.embed_tokens.weight"
    assert torch.equal(quantized.get_parameter(embedding), model.get_parameter(embedding))


def test_tokens_count_as_much_as_their_weights(model: nn.Module, modules: Modules) -> None:
    batches = picture_batches(model)
    weights = [torch.where(batch["mm_token_type_ids"] > 0, 0.25, 2.0) for batch in batches]
    weights[0][:, 3] = 0
    blocks, groups = walk(copy.deepcopy(model), modules, batches, DecoderSettings(RTN), token_weights=weights)
    for group, inputs in references(model, groups, blocks, batches):
        assert close(group.hessian, second_moments(inputs, weights)), group.names
        assert group.tokens == sum(batch["input_ids"].numel() for batch in batches) - 1


@pytest.mark.parametrize("compensate", [True, False])
def test_no_layer_of_a_block_runs_again_but_the_last_of_a_part(
    model: nn.Module, modules: Modules, compensate: bool
) -> None:
    """Without the unquantized stream's run, what a part returns is seen in the first batch."""
    batches = picture_batches(model)
    calls: Counter[str] = Counter()
    for name in modules.linears:
        layer = model.get_submodule(f"{modules.blocks}.1.{name}")
        layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
    walk(model, modules, batches, DecoderSettings(RTN, compensate=compensate))
    count = len(batches)
    runs = dict.fromkeys(modules.linears, count + (count if compensate else 1))
    runs["self_attn.o_proj"] = 3 * count + (count if compensate else 0)  # for gate and up, for down, for the output
    runs["mlp.down_proj"] = count + (count if compensate else 0)
    assert calls == runs


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_continued_walk_gives_the_same_bytes(model: nn.Module, modules: Modules, done: int) -> None:
    batches = picture_batches(model)
    settings = DecoderSettings(RTN, head=HEAD8, compensate=True)
    whole, groups = walk(copy.deepcopy(model), modules, batches, settings)
    rest, continued = walk(copy.deepcopy(model), modules, batches, settings, finished=whole[:done])
    assert [block.index for block in rest] == list(range(done, len(whole)))
    for group, again in zip(groups[len(groups) - len(continued) :], continued, strict=True):
        assert group.names == again.names
        assert torch.equal(group.hessian, again.hessian)
        assert group.cross is not None and again.cross is not None
        assert torch.equal(group.cross, again.cross)


def test_a_text_model_with_padded_batches() -> None:
    model = llama()
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    batches = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids.flip(1)}]
    blocks, groups = walk(copy.deepcopy(model), LLAMA, batches, DecoderSettings(RTN, head=HEAD8))
    weights = [mask.float(), torch.ones(2, 12)]
    for group, inputs in references(model, groups, blocks, batches):
        assert group.tokens == 24 + 12 + 7
        assert close(group.hessian, second_moments(inputs, weights)), group.names


def test_half_precision_weights_are_solved_in_float32(qwen3_vl_bf16: Path) -> None:
    modules = get_family("qwen3_vl").modules
    assert modules is not None
    model = load(qwen3_vl_bf16).to(torch.bfloat16)
    batches = picture_batches(model)
    blocks, groups = walk(copy.deepcopy(model), modules, batches, DecoderSettings(RTN))
    for group, inputs in references(model.float(), groups, blocks, batches):
        assert group.hessian.dtype == torch.float32
        assert all(weight.dtype == torch.float32 for weight in group.weights.values())
        expected = second_moments(inputs)  # the float32 model's; bfloat16 keeps 8 bits
        assert (group.hessian - expected).norm() < 0.05 * expected.norm(), group.names


def test_formats_that_do_not_fit_are_refused_before_anything_runs() -> None:
    model, batches = llama(), [{"input_ids": torch.ones(1, 4, dtype=torch.long)}]
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj: 64 input columns .* 128") as caught:
        walk(model, LLAMA, batches, DecoderSettings(SolveSettings(method="rtn", group_size=128)))
    assert caught.value.hint == "use --group-size 64"
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.down_proj: 96 input columns"):
        walk(model, LLAMA, batches, DecoderSettings(SolveSettings(method="rtn", group_size=64)))
    formats = {"model.layers.1.mlp.up_proj": BlockFormat(8, 32, symmetric=False)}
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.gate_proj and .*up_proj share an input"):
        walk(model, LLAMA, batches, DecoderSettings(RTN, formats=formats))
    with pytest.raises(InputError, match="no batches"):
        walk(model, LLAMA, [], DecoderSettings(RTN))


def test_layers_may_have_formats_of_their_own() -> None:
    batches = [{"input_ids": torch.ones(1, 4, dtype=torch.long)}]
    formats = {"model.layers.1.mlp.down_proj": BlockFormat(8, 32, symmetric=True)}
    blocks, _ = walk(llama(), LLAMA, batches, DecoderSettings(RTN, formats=formats))
    found = {name: weight.bits for block in blocks for name, weight in block.weights.items() if weight.bits != 4}
    assert found == {"model.layers.1.mlp.down_proj": 8}
    assert blocks[1].weights["model.layers.1.mlp.down_proj"].zero_points is None
