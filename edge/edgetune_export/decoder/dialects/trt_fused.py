"""The `trt` dialect from TensorRT 10.16 on (JetPack 7.2, TensorRT-RTX): the transformer operators of ONNX 23 and 24."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder.dialects.trt import DecomposedTrtDialect, TrtDialect
from edgetune_export.graph import Dim
from edgetune_runtime.quant.blocks import Float


class FusedTrtDialect(TrtDialect):
    """RMSNormalization-23, RotaryEmbedding-23, TensorScatter-24 and Attention-24.

    The cache is [1, kv_heads, M, d]. TensorScatter becomes TensorRT's in-place cache update, which demands that past
    and present are one buffer.
    """

    opset = 24
    in_place = True

    def norm(self, states: ir.Value, name: str, weight: Float) -> ir.Value:
        """RMSNormalization, computed in float32."""
        gain = self._vector(name, weight)
        return self.graph.op("RMSNormalization", states, gain, axis=-1, epsilon=self._spec.norm_eps, stash_type=1)

    def cache_shape(self, length: str) -> tuple[Dim, ...]:
        """[1, kv_heads, M, d]."""
        return (1, self._spec.kv_heads, self._max_length, self._spec.head_dim)

    def start(self) -> None:
        """Also the first new row, and how many rows are filled after this call."""
        super().start()
        op, constant = self.graph.op, self.graph.constant
        self._first = op("Gather", self._rows, constant("index.first", np.array([0])))  # [1]
        last = op("Gather", self._rows, constant("index.last", np.array([-1])))
        self._filled = op("Add", last, constant("one", np.array([1])))  # [1]

    def attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
        norms: tuple[tuple[str, Float], tuple[str, Float]] | None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The mask says all; the filled length beside it only spares reading the rest of the cache."""
        op, spec = self.graph.op, self._spec
        query, key, value = (
            self._reshape(states, 1, -1, heads, spec.head_dim)
            for states, heads in ((query, spec.heads), (key, spec.kv_heads), (value, spec.kv_heads))
        )
        if norms is not None:
            query, key = self.norm(query, *norms[0]), self.norm(key, *norms[1])
        query, key, value = (op("Transpose", states, perm=[0, 2, 1, 3]) for states in (query, key, value))
        query, key = (op("RotaryEmbedding", states, self._cos, self._sin) for states in (query, key))
        present = [
            op("TensorScatter", old, new, self._first, axis=2) for old, new in zip(past, (key, value), strict=True)
        ]
        mixed = op(
            "Attention", query, *present, self._visible, None, None, self._filled, scale=spec.head_dim**-0.5
        )  # [1, heads, S, d]
        flat = self._reshape(op("Transpose", mixed, perm=[0, 2, 1, 3]), 1, -1, spec.heads * spec.head_dim)
        return flat, present[0], present[1]


PROFILES: dict[str, type[DecomposedTrtDialect] | type[FusedTrtDialect]] = {
    "10.3": DecomposedTrtDialect,
    "10.13": DecomposedTrtDialect,
    "10.16": FusedTrtDialect,
}
"""`--trt-profile`: the oldest TensorRT that is to read the graph."""
