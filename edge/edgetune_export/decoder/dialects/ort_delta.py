"""Delta nets in onnxruntime's operators: a convolution with a state, the gate, and linear attention (com.microsoft)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder.delta import DTYPE, DeltaParameters, DeltaSpec
from edgetune_export.graph import MICROSOFT, GraphBuilder

_NORM = 1e-6
"""Added to the squared length of queries and keys before its root is taken."""


def write_delta(
    graph: GraphBuilder,
    spec: DeltaSpec,
    mixed: tuple[ir.Value, ir.Value, ir.Value, ir.Value],
    past: tuple[ir.Value, ir.Value],
    parameters: DeltaParameters,
    *,
    norm_eps: float,
    dtype: ir.DataType,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Write a layer; see `DeltaDialect.delta`."""
    op, name = graph.op, parameters.name
    joint, gate, rate, decay = (part if dtype == DTYPE else op("Cast", part, to=DTYPE) for part in mixed)
    kernel = graph.weight(
        f"{name}.conv1d.weight",
        DTYPE,
        (spec.channels, 1, spec.kernel),
        lambda: parameters.kernel().reshape(spec.channels, 1, spec.kernel),
    )
    channels_first = op("Transpose", joint, perm=[0, 2, 1])
    convolved, present_conv = graph.ops(
        "CausalConvWithState",
        channels_first,
        kernel,
        None,
        past[0],
        outputs=2,
        domain=MICROSOFT,
        activation="silu",
    )
    lengths = graph.constant("delta.split", np.array([spec.keys, spec.keys, spec.values]))
    parts = graph.ops("Split", op("Transpose", convolved, perm=[0, 2, 1]), lengths, outputs=3, axis=-1)
    query, key = (_heads(graph, spec, part) for part in parts[:2])
    step, scale = (
        graph.constant(f"{name}.{kind}", array.astype(np.float32))
        for kind, array in (("dt_bias", parameters.step), ("decay", parameters.decay))
    )
    fading, strength = graph.ops("LinearAttentionGate", decay, step, scale, rate, outputs=2, domain=MICROSOFT)
    attended, present_state = graph.ops(
        "LinearAttention",
        query,
        key,
        parts[2],
        past[1],
        fading,
        strength,
        outputs=2,
        domain=MICROSOFT,
        q_num_heads=spec.value_heads,
        kv_num_heads=spec.value_heads,
        update_rule="gated_delta",
        scale=spec.key_dim**-0.5,
    )
    by_head = graph.constant("delta.by_head", np.array([0, 0, spec.value_heads, spec.value_dim]))
    weight = graph.constant(f"{name}.norm.weight", parameters.norm)
    normed = rms_norm(graph, op("Reshape", attended, by_head), weight, norm_eps)
    flat = op("Reshape", normed, graph.constant("shape.flat", np.array([0, 0, -1])))
    active = op("Mul", gate, op("Sigmoid", gate))
    output = op("Mul", flat, active)
    return output if dtype == DTYPE else op("Cast", output, to=dtype), present_conv, present_state


def rms_norm(graph: GraphBuilder, states: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    """SimplifiedLayerNormalization: onnxruntime registers this contrib operator in the standard domain."""
    return graph.op("SimplifiedLayerNormalization", states, weight, axis=-1, epsilon=epsilon, stash_type=1)


def _heads(graph: GraphBuilder, spec: DeltaSpec, value: ir.Value) -> ir.Value:
    """Queries or keys of length one, each head as often as it serves a head of the values.

    A root mean square norm with a weight of 1/√d divides by the length.
    """
    op = graph.op
    split = graph.constant("delta.by_key", np.array([0, 0, spec.key_heads, spec.key_dim]))
    root = graph.constant("delta.length", np.full(spec.key_dim, spec.key_dim**-0.5, np.float32))
    unit = rms_norm(graph, op("Reshape", value, split), root, _NORM / spec.key_dim)
    times = spec.value_heads // spec.key_heads
    if times > 1:
        wide = op("Unsqueeze", unit, graph.constant("axis.3", np.array([3])))
        unit = op("Expand", wide, graph.constant("delta.times", np.array([1, 1, 1, times, 1])))
    return op("Reshape", unit, graph.constant("delta.flat", np.array([0, 0, spec.value_heads * spec.key_dim])))
