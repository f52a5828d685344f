"""embed_tokens.onnx: the token table, its own in standard operators, or the one that the head has already."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder.linear import Linear
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.graph import MICROSOFT, GraphBuilder

OPSET = 20


def build_embed(decoder: DecoderWeights, precision: str, written: ir.Model | None = None) -> ir.Model:
    """input_ids int64 [B, S] -> inputs_embeds float32 [B, S, H].

    Args:
        decoder: whose token table [V, H] it is; a part of it is in memory at a time.
        precision: how the table is stored: "fp32", "fp16", or "int8" with one scale a token.
        written: the decoder's graph, saved beside the one to be with the head in its data file. Where the head is the
            token table (tied weights) in blocks, the table is not stored again: this graph reads the head's.
    """
    head = decoder.head()
    if written is not None and precision == "int8" and decoder.tied and _stores_table(head):
        values = [written.graph.initializers.get(f"{head.name}.weight_{kind}") for kind in ("codes", "scales", "zeros")]
        tensors = [value.const_value for value in values if value is not None]
        if all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
            return _build_shared(head, *tensors)
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


def _stores_table(head: Linear) -> bool:
    """Whether a head's weight is the token table in whole blocks, its columns in the model's order."""
    fmt = head.format
    return fmt is not None and head.columns % fmt.block == 0 and head.order is None


def _build_shared(head: Linear, codes: Any, scales: Any, *zeros: Any) -> ir.Model:
    """The table in the tensors of the head's MatMulNBits: uint8 codes, a scale a block, and its zero points if any.

    GatherBlockQuantized, an operator of onnxruntime's own, takes 2^(bits - 1) for zero where it has no zero points,
    as MatMulNBits does.
    """
    fmt = head.format
    assert fmt is not None
    graph = GraphBuilder("embed_tokens")
    ids = graph.input("input_ids", ir.DataType.INT64, ("batch_size", "length"))
    table = graph.stored("embed_tokens.codes", codes, (head.rows, head.columns * fmt.bits // 8))
    others = [
        graph.stored(f"embed_tokens.{kind}", tensor, tuple(tensor.shape.numpy()))
        for kind, tensor in zip(("scales", "zeros"), (scales, *zeros), strict=False)
    ]
    sizes = {"bits": fmt.bits, "block_size": fmt.block, "gather_axis": 0, "quantize_axis": 1}
    embeds = graph.op("GatherBlockQuantized", table, ids, *others, domain=MICROSOFT, **sizes)
    if scales.dtype != ir.DataType.FLOAT:
        embeds = graph.op("Cast", embeds, to=ir.DataType.FLOAT)
    graph.output(embeds, "inputs_embeds", ir.DataType.FLOAT, ("batch_size", "length", head.columns))
    return graph.model(OPSET)
