"""The Triton kernels against the plain pass over the same decoder; on a CPU through Triton's interpreter."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton")  # which only Linux has

from edgetune_runtime.backends.triton.fused import Fused
from edgetune_runtime.backends.triton.model import Cache, Decoder, Layer, Sizes, forward
from edgetune_runtime.backends.triton.packing import PackedLinear, dense, pack, stack
from edgetune_runtime.backends.triton.step import SHORTEST, SPLITS, Step, dequantize
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat, round_to_nearest

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
FORMATS = {
    "int4 g32": BlockFormat(4, 32, symmetric=False),
    "int4 g64": BlockFormat(4, 64, symmetric=True),
    "int3 g32": BlockFormat(3, 32, symmetric=True),
    "int8 g64": BlockFormat(8, 64, symmetric=False),
    "int8 g32": BlockFormat(8, 32, symmetric=True),
}


def random_layer(
    generator: np.random.Generator, rows: int, columns: int, fmt: BlockFormat | None, bias: bool
) -> PackedLinear:
    """A layer [rows, columns], quantized or not."""
    weight = (generator.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)
    offset = torch.from_numpy(generator.standard_normal(rows).astype(np.float32)) if bias else None
    if fmt is None:
        return dense(torch.from_numpy(weight), offset)
    return pack(round_to_nearest(weight, fmt), offset)


def random_decoder(
    fmt: BlockFormat | None, *, heads: int, kv_heads: int, size: int, norms: bool, bias: bool
) -> Decoder:
    """One small layer, since Triton's interpreter takes its time."""
    generator = np.random.default_rng(0)
    sizes = Sizes(1, 64, 128, heads, kv_heads, size, 43, 1e-6)

    def make(rows: int, columns: int, bias: bool = False) -> PackedLinear:
        return random_layer(generator, rows, columns, fmt, bias).to(DEVICE)

    def gain(length: int) -> torch.Tensor:
        return torch.from_numpy(generator.uniform(0.5, 1.5, length).astype(np.float32)).to(DEVICE)

    layer = Layer(
        input_norm=gain(64),
        qkv=make((heads + 2 * kv_heads) * size, 64, bias),
        q_norm=gain(size) if norms else None,
        k_norm=gain(size) if norms else None,
        out=make(64, heads * size),
        post_norm=gain(64),
        gate_up=make(256, 64),
        down=make(64, 128),
    )
    rope = torch.from_numpy(generator.uniform(0, 0.2, (3, size // 2)).astype(np.float32)).to(DEVICE)
    table = torch.from_numpy(generator.standard_normal((43, 64)).astype(np.float32)).to(DEVICE)
    return Decoder(sizes, torch.float32, rope, table, (layer,), gain(64), make(43, 64))


@pytest.mark.parametrize("name", [*FORMATS, "dense"])
def test_a_packed_layer_stands_for_the_weight(name: str) -> None:
    weight = np.random.default_rng(1).standard_normal((24, 192)).astype(np.float32)
    if name == "dense":
        assert torch.equal(dense(torch.from_numpy(weight)).dense(torch.float32), torch.from_numpy(weight))
        return
    blocks = round_to_nearest(weight, FORMATS[name])
    layer = pack(blocks)
    assert (layer.rows, layer.columns) == (24, 192)
    np.testing.assert_array_equal(layer.dense(torch.float32).numpy(), blocks.dequantize())
    np.testing.assert_array_equal(dequantize(layer.to(DEVICE), torch.float32).cpu().numpy(), blocks.dequantize())


@pytest.mark.parametrize("name", [*FORMATS, "dense"])
def test_a_step_computes_what_the_plain_pass_computes(name: str) -> None:
    decoder = random_decoder(FORMATS.get(name), heads=2, kv_heads=1, size=32, norms=True, bias=True)
    assert_steps(decoder, past=5, steps=1)


@pytest.mark.parametrize("past", [0, SHORTEST - 1, SHORTEST, 5 * SHORTEST // 2, SPLITS * SHORTEST + 7])
def test_attention_over_one_and_several_ranges_of_the_cache(past: int) -> None:
    decoder = random_decoder(FORMATS["int8 g64"], heads=2, kv_heads=1, size=32, norms=False, bias=False)
    assert_steps(decoder, past=past, steps=1)


def assert_steps(decoder: Decoder, *, past: int, steps: int) -> None:
    """Logits, tokens and cache of greedy steps, and logits of one whose embedding is given."""
    generator = torch.Generator().manual_seed(0)
    plain, fused = (Cache.empty(decoder, past + steps + 3) for _ in range(2))
    if past:
        states = torch.randn(past, decoder.sizes.hidden, generator=generator).to(DEVICE)
        places = torch.randint(0, 40, (3, past), generator=generator).to(DEVICE)
        for cache in (plain, fused):
            forward(decoder, cache, 0, states, places)
    step = Step(decoder, fused)
    token = 17
    step.token.fill_(token)
    step.positions.copy_(torch.tensor([50, 51, 52]))
    step.past.fill_(past)
    for number in range(steps):
        embedding = decoder.embedding[token][None]
        places = torch.tensor([[50], [51], [52]], device=DEVICE) + number
        expected = forward(decoder, plain, past + number, embedding, places)[0]
        step.greedy()
        assert_close(step.logits, expected)
        token = int(expected.argmax())
        assert int(step.token) == int(step.tokens[past + number]) == token
    states = torch.randn(decoder.sizes.hidden, generator=generator).to(DEVICE)
    places = torch.tensor([3, 70, 20], device=DEVICE)
    expected = forward(decoder, plain, past + steps, states[None], places[:, None])[0]
    step.states.copy_(states)
    step.positions.copy_(places)
    assert int(step.past) == past + steps
    step.forward()
    assert_close(step.logits, expected)
    assert_close(fused.keys, plain.keys)
    assert_close(fused.values, plain.values)


@pytest.mark.parametrize("name", [*FORMATS, "dense"])
@pytest.mark.parametrize(
    ("past", "count", "deepstack", "unpacked"),
    [(0, 70, 1, False), (9, 2, 0, False), (70, 20, 1, False), (9, 2, 0, True)],
)
def test_several_tokens_compute_what_the_plain_pass_computes(
    name: str, past: int, count: int, deepstack: int, unpacked: bool
) -> None:
    """Of which 20 are more than products read packed weights for, and 70 more than attention cuts the cache for."""
    if name not in ("int4 g32", "dense") and (count != 2 or unpacked):
        pytest.skip("takes its time in the interpreter")
    decoder = random_decoder(FORMATS.get(name), heads=2, kv_heads=1, size=32, norms=deepstack == 1, bias=True)
    generator = torch.Generator().manual_seed(0)
    plain, fused = (Cache.empty(decoder, past + count) for _ in range(2))
    passes = Fused(decoder, decoder.with_products(unpack(decoder)) if unpacked else decoder, fused, 1)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(count, decoder.sizes.hidden, generator=generator).to(DEVICE)

    if past:
        places, states = torch.randint(0, 40, (3, past), generator=generator).to(DEVICE), drawn(past)
        for cache in (plain, fused):
            forward(decoder, cache, 0, states, places)
    sees = None
    if past and not deepstack:
        sees = (torch.rand(count, past + count, generator=generator) < 0.5).to(DEVICE)
        sees[torch.arange(count), past + torch.arange(count)] = True
    for _ in range(2):  # the second time with what the first left behind
        states, added = drawn(count), [drawn(count) for _ in range(deepstack)]
        places = torch.randint(0, 40, (3, count), generator=generator).to(DEVICE)
        at = [count - 1, 0]
        expected = forward(decoder, plain, past, states, places, added, at=at, sees=sees)
        assert_close(passes.forward(past, states, places, added, at=at, sees=sees), expected)
        assert_close(fused.keys, plain.keys)
        assert_close(fused.values, plain.values)


def unpack(decoder: Decoder) -> list[PackedLinear]:
    return [dense(layer.dense(torch.float32), layer.bias) for layer in decoder.products]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((actual - expected).norm() / expected.norm()) < 1e-4


def test_some_outputs_of_the_head_are_those_of_the_whole_head() -> None:
    decoder = random_decoder(FORMATS["int4 g32"], heads=2, kv_heads=1, size=32, norms=True, bias=False)
    rows = torch.tensor([40, 3, 17], device=DEVICE)
    passes = Fused(decoder, decoder, Cache.empty(decoder, 8), 0, decoder.head.outputs(rows))
    states = torch.randn(3, decoder.sizes.hidden, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for count in (1, 3):
        places = torch.arange(count, device=DEVICE).expand(3, -1)
        at = [count - 1]
        whole = passes.forward(0, states[:count], places, at=at).clone()
        assert_close(passes.forward(0, states[:count], places, at=at, answers=True), whole[:, rows])


def test_equal_logits_give_the_first_token() -> None:
    decoder = random_decoder(None, heads=2, kv_heads=1, size=32, norms=False, bias=False)
    rows = decoder.head.weight.clone()
    rows[[14, 37]] = 3 * torch.sign(rows[14])
    twins = Decoder(**{**decoder.__dict__, "head": PackedLinear(rows, 16, 64)})
    step = Step(twins, Cache.empty(twins, 4))
    for token in range(2):
        step.token.fill_(token)
        step.past.fill_(0)
        step.greedy()
        assert int(step.token) == int(step.logits.argmax())
    assert step.logits[14] == step.logits[37]


@pytest.mark.parametrize(("columns", "block"), [(128, 16), (144, 48), (100, 64)])
def test_groups_that_the_kernels_do_not_read_are_refused(columns: int, block: int) -> None:
    weight = np.ones((8, columns), np.float32)
    with pytest.raises(InputError, match="does not fit the torch engine"):
        pack(round_to_nearest(weight, BlockFormat(4, block, symmetric=True)))


def test_layers_of_different_formats_are_not_stacked() -> None:
    generator = np.random.default_rng(0)
    layers = [random_layer(generator, 8, 64, FORMATS[name], False) for name in ("int4 g32", "int4 g64")]
    with pytest.raises(InputError, match="quantized differently"):
        stack(layers)


def test_a_bias_that_only_some_stacked_layers_have_is_zero_elsewhere() -> None:
    generator = np.random.default_rng(0)
    with_bias, without = (random_layer(generator, 4, 64, None, bias) for bias in (True, False))
    joined = stack([with_bias, without])
    assert with_bias.bias is not None and joined.bias is not None
    assert torch.equal(joined.bias, torch.cat([with_bias.bias, torch.zeros(4)]))
