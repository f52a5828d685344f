"""Short convolutions in onnxruntime's operators (com.microsoft)."""

from __future__ import annotations

import onnx_ir as ir

from edgetune_export.decoder.delta import DTYPE
from edgetune_export.decoder.short_conv import ConvParameters, ConvSpec
from edgetune_export.graph import MICROSOFT, GraphBuilder


def write_short_conv(
    graph: GraphBuilder,
    spec: ConvSpec,
    mixed: tuple[ir.Value, ir.Value, ir.Value],
    past: ir.Value,
    parameters: ConvParameters,
    *,
    dtype: ir.DataType,
) -> tuple[ir.Value, ir.Value]:
    """Write a layer; see `ConvDialect.short_conv`."""
    op, name = graph.op, parameters.name
    before, behind, states = (part if dtype == DTYPE else op("Cast", part, to=DTYPE) for part in mixed)
    shape = (spec.channels, 1, spec.kernel)
    kernel = graph.weight(f"{name}.conv.weight", DTYPE, shape, lambda: parameters.kernel().reshape(shape))
    bias = None
    if parameters.bias is not None:
        bias = graph.weight(f"{name}.conv.bias", DTYPE, (spec.channels,), parameters.bias)
    channels_first = op("Transpose", op("Mul", before, states), perm=[0, 2, 1])
    convolved, present = graph.ops(
        "CausalConvWithState", channels_first, kernel, bias, past, outputs=2, domain=MICROSOFT
    )
    output = op("Mul", behind, op("Transpose", convolved, perm=[0, 2, 1]))
    return output if dtype == DTYPE else op("Cast", output, to=dtype), present
