"""The decoder graph: the walk over layers that every dialect shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder import delta, short_conv
from edgetune_export.decoder.delta import DeltaDialect, DeltaSpec
from edgetune_export.decoder.dialects import Dialect
from edgetune_export.decoder.linear import Linear, Rows
from edgetune_export.decoder.short_conv import ConvDialect, ConvSpec
from edgetune_export.decoder.weights import DecoderSpec, DecoderWeights
from edgetune_export.graph import Dim, GraphBuilder
from edgetune_runtime.backends.onnx.heads import ANSWERS, ANSWERS_AT, LOGITS, LOGITS_AT
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import Float

_REAL = ir.DataType.FLOAT

BLOCK = "block"
"""What a block adds to the states of its tokens, and what it adds that to, are called `block.{layer}.update` and
`block.{layer}.residual` in the graph, so that a check can find them."""

Mixer = Callable[[Dialect, DecoderWeights, int, ir.Value, Sequence[ir.Value]], tuple[ir.Value, ...]]
"""Writes what mixes the tokens of a layer, from its normed states and its past: the output, and what it keeps."""

DialectFactory = Callable[[GraphBuilder, DecoderSpec], Dialect]


def build_decoder(weights: DecoderWeights, make_dialect: DialectFactory, answer_tokens: Sequence[int] = ()) -> ir.Model:
    """Write the decoder.

    Args:
        weights: of the model.
        make_dialect: gives the operators.
        answer_tokens: whose rows of the head the graph has once more, as a head of their own; none for no such head.

    Inputs: inputs_embeds [B, S, H], what `Dialect.start` declares, past_key_values.{i}.key and .value,
    deepstack_embeds.{i} [B, S, H] (added after layer i; zero at text tokens). Outputs: logits float32 [B, 1, V] of the
    last token, present.{i}.key and .value. Dtypes of embeddings and shapes of the cache are the dialect's. Delta nets
    have .conv and .state in place of .key and .value, short convolutions have .conv, in float32.

    In a dialect that lets a caller choose, logits_at int64 [n] are the numbers of this call's tokens after which
    logits [B, n, V] are told, and answers_at int64 [m] those after which answer_logits [B, m, N] are, of the
    `answer_tokens`. Both are optional: by themselves they are the last token, and none.

    Raises:
        InputError: the dialect does not know a kind of layer.
    """
    spec = weights.spec
    graph = GraphBuilder("decoder")
    dialect = make_dialect(graph, spec)
    dtype = dialect.dtype
    states_shape = (dialect.batch, "length", spec.hidden)
    embeds = graph.input("inputs_embeds", dialect.input_dtype, states_shape)
    dialect.start()
    require_known(spec, type(dialect))
    kept = [dtype if spec.recurrent(layer) is None else delta.DTYPE for layer in range(spec.layers)]
    caches = [_cache_of(dialect, spec, layer, "past_length") for layer in range(spec.layers)]
    pasts = [
        [graph.input(f"past_key_values.{layer}.{kind}", kept[layer], shape) for kind, shape in cache.items()]
        for layer, cache in enumerate(caches)
    ]
    deepstack = [graph.input(f"deepstack_embeds.{i}", dialect.input_dtype, states_shape) for i in range(spec.deepstack)]

    def activation(value: ir.Value) -> ir.Value:
        return value if dtype == dialect.input_dtype else graph.op("Cast", value, to=dtype)

    residual = activation(embeds)
    states = dialect.norm(residual, *_norm(weights, 0, "input_layernorm"))
    presents: list[list[ir.Value]] = []
    for layer in range(spec.layers):
        if layer > 0:
            states, residual = dialect.residual_norm(states, residual, *_norm(weights, layer, "input_layernorm"))
        states, *present = _MIXERS[type(spec.recurrent(layer))](dialect, weights, layer, states, pasts[layer])
        presents.append(present)
        states, residual = dialect.residual_norm(states, residual, *_norm(weights, layer, "post_attention_layernorm"))
        states = _feed_forward(dialect, weights, layer, states)
        if layer < spec.deepstack:
            states = graph.op("Add", states, activation(deepstack[layer]))
        states.name, residual.name = f"{BLOCK}.{layer}.update", f"{BLOCK}.{layer}.residual"
    if dialect.chooses:
        states, _ = dialect.residual_norm(states, residual, *_norm(weights, None, "norm"))
        _tell(dialect, states, weights.head(), LOGITS, LOGITS_AT, [-1])
    else:
        # The head is the largest product of the prefill, and the last token's logits are the only ones used.
        states, residual = _last_token(graph, states), _last_token(graph, residual)
        states, _ = dialect.residual_norm(states, residual, *_norm(weights, None, "norm"))
        graph.output(_head(dialect, states, weights.head()), LOGITS, _REAL, (dialect.batch, 1, spec.vocabulary))
    for layer, pair in enumerate(presents):
        cache = _cache_of(dialect, spec, layer, "present_length")
        for (kind, shape), value in zip(cache.items(), pair, strict=True):
            graph.output(value, f"present.{layer}.{kind}", kept[layer], shape)
    if dialect.chooses and len(answer_tokens):
        _tell(dialect, states, Rows("answer_head", weights.head(), answer_tokens), ANSWERS, ANSWERS_AT, [])
    return graph.model(dialect.opset)


def _tell(dialect: Dialect, states: ir.Value, head: Linear, name: str, at: str, default: Sequence[int]) -> None:
    """Make a head's product of the states of chosen tokens an output of the graph.

    Its declared shape is that of the default: readers that know of no choice make room by it (onnxruntime-genai).
    """
    graph = dialect.graph
    rows = graph.optional(at, np.array(default, np.int64), (f"{name}_count",))
    chosen = graph.op("Gather", states, rows, axis=1)
    told = len(default) or f"{name}_count"
    graph.output(_head(dialect, chosen, head), name, _REAL, (dialect.batch, told, head.rows))


def _head(dialect: Dialect, states: ir.Value, head: Linear) -> ir.Value:
    """Logits in float32."""
    logits = _linear(dialect, states, head)
    return logits if dialect.dtype == _REAL else dialect.graph.op("Cast", logits, to=_REAL)


def require_known(spec: DecoderSpec, dialect: type[Dialect]) -> None:
    """Refuse a decoder with layers that a dialect does not write, before anything is.

    Raises:
        InputError: it has layers of linear attention and the dialect is no `DeltaDialect`, or short convolutions and it
            is no `ConvDialect`.
    """
    unknown = None
    if spec.delta is not None and not issubclass(dialect, DeltaDialect):
        unknown = "layers of linear attention (gated delta nets)"
    elif spec.conv is not None and not issubclass(dialect, ConvDialect):
        unknown = "layers of short convolutions"
    if unknown is not None:
        raise InputError(f"{unknown} are not written in this format", hint="export --format onnx --dialect ort")


def _cache_of(dialect: Dialect, spec: DecoderSpec, layer: int, length: str) -> dict[str, tuple[Dim, ...]]:
    """What a layer keeps of the tokens before, and the shapes of it."""
    recurrent = spec.recurrent(layer)
    if recurrent is not None:
        return recurrent.shapes(dialect.batch)
    return dict.fromkeys(("key", "value"), dialect.cache_shape(length))


def _norm(weights: DecoderWeights, layer: int | None, role: str) -> tuple[str, Float]:
    """Name and weight of a norm that must exist."""
    weight = weights.norm(layer, role)
    assert weight is not None, role
    prefix = "model" if layer is None else f"model.layers.{layer}"
    return f"{prefix}.{role}.weight", weight


def _attention(
    dialect: Dialect, weights: DecoderWeights, layer: int, states: ir.Value, past: Sequence[ir.Value]
) -> tuple[ir.Value, ...]:
    """Project, attend and project back; returns the output and the present key and value."""
    spec = weights.spec
    graph, width = dialect.graph, spec.heads * spec.head_dim
    roles = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    query, key, value = _products(dialect, weights, layer, states, *roles)
    gate = None
    if spec.gated:  # head by head the query and behind it the gate
        by_head = graph.op("Reshape", query, graph.constant("gate.by_head", np.array([0, 0, spec.heads, -1])))
        flat = graph.constant("gate.flat", np.array([0, 0, width]))
        query, gate = (graph.op("Reshape", part, flat) for part in _split(graph, by_head, (spec.head_dim,) * 2))
    norms = None
    if weights.norm(layer, "self_attn.q_norm") is not None:
        norms = _norm(weights, layer, "self_attn.q_norm"), _norm(weights, layer, "self_attn.k_norm")
    mixed, present_key, present_value = dialect.attention(query, key, value, (past[0], past[1]), norms)
    if gate is not None:
        mixed = graph.op("Mul", mixed, graph.op("Sigmoid", gate))
    return _linear(dialect, mixed, weights.linear(layer, "self_attn.o_proj")), present_key, present_value


def _delta_net(
    dialect: Dialect, weights: DecoderWeights, layer: int, states: ir.Value, past: Sequence[ir.Value]
) -> tuple[ir.Value, ...]:
    """Project, mix by linear attention and project back; returns the output and the present conv and state."""
    assert isinstance(dialect, DeltaDialect)
    *inputs, output = delta.LINEARS
    mixed, gate, rate, decay = _products(dialect, weights, layer, states, *inputs)
    attended, conv, state = dialect.delta((mixed, gate, rate, decay), (past[0], past[1]), weights.delta(layer))
    return _linear(dialect, attended, weights.linear(layer, output)), conv, state


def _short_conv(
    dialect: Dialect, weights: DecoderWeights, layer: int, states: ir.Value, past: Sequence[ir.Value]
) -> tuple[ir.Value, ...]:
    """Project, convolve and project back; returns the output and the present state."""
    spec = weights.spec.conv
    assert spec is not None and isinstance(dialect, ConvDialect)
    entry, output = short_conv.LINEARS
    joint = _linear(dialect, states, weights.linear(layer, entry))
    before, behind, values = _split(dialect.graph, joint, (spec.channels,) * 3)
    convolved, present = dialect.short_conv((before, behind, values), past[0], weights.conv(layer))
    return _linear(dialect, convolved, weights.linear(layer, output)), present


_MIXERS: Mapping[type, Mixer] = {NoneType: _attention, DeltaSpec: _delta_net, ConvSpec: _short_conv}
"""By what `DecoderSpec.recurrent` says of a layer."""


def _feed_forward(dialect: Dialect, weights: DecoderWeights, layer: int, states: ir.Value) -> ir.Value:
    """SwiGLU: down(silu(gate(x)) · up(x))."""
    graph = dialect.graph
    gate, up = _products(dialect, weights, layer, states, "mlp.gate_proj", "mlp.up_proj")
    active = graph.op("Mul", gate, graph.op("Sigmoid", gate))
    return _linear(dialect, graph.op("Mul", active, up), weights.linear(layer, "mlp.down_proj"))


def _products(dialect: Dialect, weights: DecoderWeights, layer: int, states: ir.Value, *roles: str) -> list[ir.Value]:
    """What linear layers make of the same states, in as few products as their formats allow."""
    found: dict[str, ir.Value] = {}
    for linear, names in weights.products(layer, *roles):
        product, sizes = _linear(dialect, states, linear), tuple(part.rows for part in linear.parts)
        parts = _split(dialect.graph, product, sizes) if len(sizes) > 1 else [product]
        found |= dict(zip(names, parts, strict=True))
    return [found[role] for role in roles]


def _linear(dialect: Dialect, states: ir.Value, linear: Linear) -> ir.Value:
    """A product, its states first put into the order of its weight's columns where that is another (desc_act)."""
    order = linear.order
    if order is not None:
        states = dialect.graph.op("Gather", states, dialect.graph.constant(f"{linear.name}.order", order), axis=2)
    return dialect.linear(states, linear)


def _split(graph: GraphBuilder, value: ir.Value, sizes: tuple[int, ...]) -> list[ir.Value]:
    """Cut the last axis."""
    lengths = graph.constant("split." + ".".join(map(str, sizes)), np.array(sizes))
    return graph.ops("Split", value, lengths, outputs=len(sizes), axis=-1)


def _last_token(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    """[B, 1, H] of [B, S, H]."""
    start, end, axis = (
        graph.constant(name, np.array([number]))
        for name, number in (("slice.start", -1), ("slice.end", np.iinfo(np.int64).max), ("slice.axis", 1))
    )
    return graph.op("Slice", value, start, end, axis)
