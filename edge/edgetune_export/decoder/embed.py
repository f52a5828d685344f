"""embed_tokens.onnx: the token table as a graph of standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.graph import GraphBuilder

OPSET = 20


def build_embed(decoder: DecoderWeights, precision: str) -> ir.Model:
    """input_ids int64 [B, S] -> inputs_embeds float32 [B, S, H].

    Args:
        decoder: whose token table [V, H] it is; a part of it is in memory at a time.
        precision: how the table is stored: "fp32", "fp16", or "int8" with one scale a token.
    """
    graph = GraphBuilder("embed_tokens")
    shape = (decoder.spec.vocabulary, decoder.spec.hidden)
    ids = graph.input("input_ids", ir.DataType.INT64, ("batch_size", "length"))
    if precision == "int8":
        codes, scales = np.empty(shape, np.int8), np.empty((shape[0], 1), np.float32)
        for rows, part in decoder.embedding_parts():
            scales[rows] = np.maximum(np.abs(part).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            scales[rows] /= np.float32(127)
            codes[rows] = np.rint(part / scales[rows])
        taken = graph.op("Gather", graph.constant("embed_tokens.codes", codes), ids)
        steps = graph.op("Gather", graph.constant("embed_tokens.scales", scales), ids)  # [B, S, 1]
        embeds = graph.op("Mul", graph.op("Cast", taken, to=ir.DataType.FLOAT), steps)
    else:
        dtype = ir.DataType.FLOAT if precision == "fp32" else ir.DataType.FLOAT16
        table = np.empty(shape, dtype.numpy())
        for rows, part in decoder.embedding_parts():
            table[rows] = part
        embeds = graph.op("Gather", graph.constant("embed_tokens.weight", table), ids)
        if dtype != ir.DataType.FLOAT:
            embeds = graph.op("Cast", embeds, to=ir.DataType.FLOAT)
    graph.output(embeds, "inputs_embeds", ir.DataType.FLOAT, ("batch_size", "length", shape[1]))
    return graph.model(OPSET)
