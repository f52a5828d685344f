"""The operator vocabularies a decoder graph can be written in.

`ort` uses onnxruntime's fused com.microsoft operators, `trt` what TensorRT's parser reads. A sibling module for another
engine implements the same protocol; the walk over the layers (`edgetune_export.decoder.builder`) stays as it is.
"""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from edgetune_export.decoder.linear import Linear
from edgetune_export.graph import Dim, GraphBuilder
from edgetune_runtime.quant.blocks import Float


class Dialect(Protocol):
    """What the decoder needs from an operator vocabulary. Hidden states are [B, S, H] in the activation dtype.

    Attributes:
        graph: receives the nodes.
        dtype: of activations and of the cache.
        input_dtype: of the graph's inputs that hold hidden states.
        batch: B in the graph's interface, free or fixed.
        opset: version of the standard operators.
        chooses: whether the graph takes the numbers of the tokens after which it is asked, as optional inputs.
    """

    graph: GraphBuilder
    dtype: ir.DataType
    input_dtype: ir.DataType
    batch: Dim
    opset: int
    chooses: bool

    def linear(self, states: ir.Value, linear: Linear) -> ir.Value:
        """States @ weightᵀ + bias."""

    def norm(self, states: ir.Value, name: str, weight: Float) -> ir.Value:
        """RMS norm over the last axis."""

    def residual_norm(
        self, states: ir.Value, residual: ir.Value, name: str, weight: Float
    ) -> tuple[ir.Value, ir.Value]:
        """The norm of states + residual, and the sum."""

    def start(self) -> None:
        """Declare position_ids int64 [3, B, S] and the inputs that tell how full the cache is.

        Also computes once what all attention layers share: rotary tables and sequence lengths.
        """

    def cache_shape(self, length: str) -> tuple[Dim, ...]:
        """Shape of a layer's keys or values in the graph's interface; a free length goes by the name given."""

    def attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
        norms: tuple[tuple[str, Float], tuple[str, Float]] | None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rotary grouped-query attention, causal, with cache.

        Args:
            query: [B, S, heads·d].
            key: [B, S, kv_heads·d].
            value: [B, S, kv_heads·d].
            past: key and value as `cache_shape` says.
            norms: (name, weight [d]) of the per-head RMS norms of query and key, applied before the rotation.

        Returns:
            The output [B, S, heads·d] and the present key and value.
        """
