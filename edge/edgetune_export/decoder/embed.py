"""embed_tokens.onnx: the token table as a graph of standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetune_export.graph import GraphBuilder, cast_float
from edgetune_runtime.quant.blocks import Float

OPSET = 20


def build_embed(table: Float, precision: str) -> ir.Model:
    """input_ids int64 [B, S] -> inputs_embeds float32 [B, S, H].

    Args:
        table: float32 [V, H].
        precision: how the table is stored: "fp32", "fp16", or "int8" with one scale a token.
    """
    graph = GraphBuilder("embed_tokens")
    ids = graph.input("input_ids", ir.DataType.INT64, ("batch_size", "length"))
    if precision == "int8":
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
        codes = np.rint(table / scale).astype(np.int8)
        rows = graph.op("Gather", graph.constant("embed_tokens.codes", codes), ids)
        scales = graph.op("Gather", graph.constant("embed_tokens.scales", scale), ids)  # [B, S, 1]
        embeds = graph.op("Mul", graph.op("Cast", rows, to=ir.DataType.FLOAT), scales)
    else:
        dtype = ir.DataType.FLOAT if precision == "fp32" else ir.DataType.FLOAT16
        embeds = graph.op("Gather", graph.constant("embed_tokens.weight", cast_float(table, dtype)), ids)
        if dtype != ir.DataType.FLOAT:
            embeds = graph.op("Cast", embeds, to=ir.DataType.FLOAT)
    graph.output(embeds, "inputs_embeds", ir.DataType.FLOAT, ("batch_size", "length", table.shape[1]))
    return graph.model(OPSET)
