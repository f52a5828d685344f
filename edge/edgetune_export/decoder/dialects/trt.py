"""The `trt` dialect: what the ONNX parsers of TensorRT read, with float16 activations and a cache of fixed length.

Two vocabularies serve three versions. TensorRT 10.3 and 10.13 have no operators for attention (10.14), rotary embedding
(10.15.1) or cache updates, so `DecomposedTrtDialect` writes them out. `FusedTrtDialect` (`trt_fused`) is for 10.16 on.

One sequence at a time: the batch is 1, and `cache_position` int64 [S] names the row of the cache that each new token
takes. Every dtype is explicit, as strongly typed networks need.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder.dialects.trt_linear import block_linear, dense_linear
from edgetune_export.decoder.linear import Linear
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.graph import Dim, GraphBuilder, cast_float
from edgetune_runtime.quant.blocks import Float


class TrtDialect:
    """What both vocabularies share.

    Args:
        graph: receives the nodes.
        spec: the decoder.
        max_length: rows of the cache, in tokens.
        dtype: of activations and cache: FLOAT16, or FLOAT to hold a graph to its reference exactly.
    """

    opset = 21
    batch: Dim = 1
    chooses = False
    in_place = False
    """Whether a past and its present must be one buffer; otherwise they must be two."""

    def __init__(
        self, graph: GraphBuilder, spec: DecoderSpec, max_length: int, dtype: ir.DataType = ir.DataType.FLOAT16
    ) -> None:
        self.graph = graph
        self.dtype = self.input_dtype = dtype
        self._spec = spec
        self._max_length = max_length

    def linear(self, states: ir.Value, linear: Linear) -> ir.Value:
        """MatMul with a float16 weight, or with INT4 DequantizeLinear for block formats."""
        write = dense_linear if linear.format is None else block_linear
        product = write(self.graph, self.dtype, states, linear)
        bias = linear.bias()
        return product if bias is None else self.graph.op("Add", product, self._vector(f"{linear.name}.bias", bias))

    def norm(self, states: ir.Value, name: str, weight: Float) -> ir.Value:
        """RMS norm in float32, the weight applied in the activation dtype (as transformers does)."""
        op, spec = self.graph.op, self._spec
        wide = self._cast(states, ir.DataType.FLOAT)
        square = op("ReduceMean", op("Mul", wide, wide), self.graph.constant("axis.last", np.array([-1])))
        epsilon = self.graph.constant("norm.epsilon", np.array(spec.norm_eps, np.float32))
        normal = op("Div", wide, op("Sqrt", op("Add", square, epsilon)))
        return op("Mul", self._cast(normal, self.dtype), self._vector(name, weight))

    def residual_norm(
        self, states: ir.Value, residual: ir.Value, name: str, weight: Float
    ) -> tuple[ir.Value, ir.Value]:
        """An Add and the norm."""
        total = self.graph.op("Add", states, residual)
        return self.norm(total, name, weight), total

    def start(self) -> None:
        """Rotary tables [1, S, d / 2] in the activation dtype, and which rows of the cache each new token sees."""
        op, spec, constant = self.graph.op, self._spec, self.graph.constant
        position_ids = self.graph.input("position_ids", ir.DataType.INT64, (3, 1, "length"))
        self._rows = self.graph.input("cache_position", ir.DataType.INT64, ("length",))
        axis_last = op("Transpose", op("Cast", position_ids, to=ir.DataType.FLOAT), perm=[1, 2, 0])  # [1, S, 3]
        angles = op("MatMul", axis_last, constant("rope.matrix", spec.rope))
        scale = constant("rope.scale", np.array(spec.rope_scale, np.float32))
        tables = [op(kind, angles) for kind in ("Cos", "Sin")]
        self._cos, self._sin = (
            self._cast(table if spec.rope_scale == 1 else op("Mul", table, scale), self.dtype) for table in tables
        )
        numbers = constant("cache.rows", np.arange(self._max_length)[None])  # [1, M]
        # A token sees its own row and the ones before: later rows hold nothing yet, or an older sequence.
        self._visible = op("LessOrEqual", numbers, op("Unsqueeze", self._rows, constant("axis.1", np.array([1]))))

    def _reshape(self, states: ir.Value, *shape: int) -> ir.Value:
        name = "shape." + ".".join(map(str, shape))
        return self.graph.op("Reshape", states, self.graph.constant(name, np.array(shape)))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Change between float32 and the activation dtype; nothing to do where they are the same."""
        return value if self.dtype == ir.DataType.FLOAT else self.graph.op("Cast", value, to=dtype)

    def _vector(self, name: str, array: Float) -> ir.Value:
        return self.graph.constant(name, cast_float(array, self.dtype))


class DecomposedTrtDialect(TrtDialect):
    """TensorRT 10.3 to 10.13 (JetPack 6.2 to 7.1): matrix products, Softmax and ScatterND.

    The cache is [M, kv_heads, d], rows first, so that the rows of new tokens are one index each. ScatterND makes a
    new cache, so past and present take turns in two buffers.
    """

    def cache_shape(self, length: str) -> tuple[Dim, ...]:
        """[M, kv_heads, d]."""
        return (self._max_length, self._spec.kv_heads, self._spec.head_dim)

    def start(self) -> None:
        """Also tables over the whole head [S, 1, d], and the additive float32 mask [S, M]."""
        super().start()
        op, dim = self.graph.op, self._spec.head_dim
        self._wide_cos, self._wide_sin = (
            self._reshape(op("Concat", table, table, axis=-1), -1, 1, dim) for table in (self._cos, self._sin)
        )
        zero, hidden = (
            self.graph.constant(name, np.array(value, np.float32)) for name, value in (("zero", 0), ("hidden", -np.inf))
        )
        self._mask = op("Where", self._visible, zero, hidden)
        self._row_index = op("Unsqueeze", self._rows, self.graph.constant("axis.1", np.array([1])))  # [S, 1]

    def attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
        norms: tuple[tuple[str, Float], tuple[str, Float]] | None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query heads that share a key head are rows of one product, so that no key is copied."""
        op, spec = self.graph.op, self._spec
        heads, shared, dim = spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim
        query = self._reshape(query, -1, spec.heads, dim)
        key, value = (self._reshape(states, -1, heads, dim) for states in (key, value))
        if norms is not None:
            query, key = self.norm(query, *norms[0]), self.norm(key, *norms[1])
        scale = self._vector("attention.scale", np.array(dim**-0.5, np.float32))
        query, key = op("Mul", self._rotate(query), scale), self._rotate(key)
        present_key, present_value = (
            op("ScatterND", old, self._row_index, new) for old, new in zip(past, (key, value), strict=True)
        )
        rows = op("Transpose", self._reshape(query, -1, heads, shared, dim), perm=[1, 2, 0, 3])  # [kv, shared, S, d]
        scores = op(
            "MatMul", self._reshape(rows, heads, -1, dim), op("Transpose", present_key, perm=[1, 2, 0])
        )  # [kv, shared·S, M]
        scores = self._cast(self._reshape(scores, heads, shared, -1, self._max_length), ir.DataType.FLOAT)
        weights = self._cast(op("Softmax", op("Add", scores, self._mask), axis=-1), self.dtype)
        mixed = op(
            "MatMul",
            self._reshape(weights, heads, -1, self._max_length),
            op("Transpose", present_value, perm=[1, 0, 2]),
        )
        mixed = op("Transpose", self._reshape(mixed, heads, shared, -1, dim), perm=[2, 0, 1, 3])  # [S, kv, shared, d]
        return self._reshape(mixed, 1, -1, spec.heads * dim), present_key, present_value

    def _rotate(self, states: ir.Value) -> ir.Value:
        """Rotary embedding of [S, heads, d] in halves."""
        op, half = self.graph.op, self._spec.head_dim // 2
        sizes = self.graph.constant("split.halves", np.array([half, half]))
        first, second = self.graph.ops("Split", states, sizes, outputs=2, axis=-1)
        turned = op("Concat", op("Neg", second), first, axis=-1)
        return op("Add", op("Mul", states, self._wide_cos), op("Mul", turned, self._wide_sin))
