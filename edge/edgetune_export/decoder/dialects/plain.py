"""The `plain` dialect: operators of the ONNX standard only (opset 21), for runtimes without onnxruntime's own.

Quantized weights are `DequantizeLinear` by block before a `MatMul`, which onnxruntime fuses into its fast product when
it loads the graph. Keys and values are concatenated to the past, as other Hugging Face style exports do, so the cache
grows with every call instead of being written in place.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.decoder.linear import Linear, shared
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.graph import Dim, GraphBuilder, cast_float
from edgetune_runtime.quant.blocks import BlockFormat, Float

_CODES = {
    (4, True): (ir.DataType.INT4, ml_dtypes.int4),
    (4, False): (ir.DataType.UINT4, ml_dtypes.uint4),
    (8, True): (ir.DataType.INT8, np.int8),
    (8, False): (ir.DataType.UINT8, np.uint8),
}
"""By bits and symmetry; symmetric codes are signed, so that no zero points are needed."""

_HIDDEN = np.finfo(np.float32).min / 2
"""Added to the score of a key that must not be seen; finite, so that a padded row is no NaN."""


class PlainDialect:
    """Writes `edgetune_export.decoder.dialects.Dialect` with standard operators.

    Args:
        graph: receives the nodes.
        spec: the decoder.
        dtype: activation dtype, FLOAT or FLOAT16.
    """

    opset = 21
    batch: Dim = "batch_size"
    chooses = False

    def __init__(self, graph: GraphBuilder, spec: DecoderSpec, dtype: ir.DataType) -> None:
        self.graph = graph
        self.dtype = dtype
        self.input_dtype = ir.DataType.FLOAT
        self._spec = spec

    def linear(self, states: ir.Value, linear: Linear) -> ir.Value:
        """MatMul with a weight [K, N], dense or dequantized by block along K."""
        shape = (linear.columns, linear.rows)
        if linear.format is None:
            weight = self.graph.weight(
                f"{linear.name}.weight", self.dtype, shape, lambda: cast_float(linear.dense().T, self.dtype)
            )
        else:
            weight = self._dequantized(linear, linear.format)
        product = self.graph.op("MatMul", states, weight)
        bias = linear.bias()
        return product if bias is None else self.graph.op("Add", product, self._vector(f"{linear.name}.bias", bias))

    def _dequantized(self, linear: Linear, fmt: BlockFormat) -> ir.Value:
        dtype, kind = _CODES[fmt.bits, fmt.symmetric]
        groups = (-(-linear.columns // fmt.block), linear.rows)
        offset = 1 << (fmt.bits - 1) if fmt.symmetric else 0
        blocks = shared(linear, uses=2 if fmt.symmetric else 3)

        def codes() -> NDArray[np.generic]:
            flat = blocks().codes.reshape(linear.rows, -1)[:, : linear.columns]
            return np.ascontiguousarray((flat.astype(np.int16) - offset).T).astype(kind)

        def zeros() -> NDArray[np.generic]:
            points = blocks().zero_points
            assert points is not None
            return np.ascontiguousarray(points.T).astype(kind)

        inputs = [
            self.graph.weight(f"{linear.name}.weight_codes", dtype, (linear.columns, linear.rows), codes),
            self.graph.weight(
                f"{linear.name}.weight_scales", self.dtype, groups, lambda: cast_float(blocks().scales.T, self.dtype)
            ),
        ]
        if not fmt.symmetric:
            inputs.append(self.graph.weight(f"{linear.name}.weight_zeros", dtype, groups, zeros))
        return self.graph.op("DequantizeLinear", *inputs, axis=0, block_size=fmt.block)

    def norm(self, states: ir.Value, name: str, weight: Float) -> ir.Value:
        """RMS norm in float32."""
        op, constant = self.graph.op, self.graph.constant
        wide = self._cast(states, ir.DataType.FLOAT)
        square = op("Pow", wide, constant("norm.square", np.array(2, np.float32)))
        mean = op("ReduceMean", square, constant("axis.last", np.array([-1])))
        epsilon = constant("norm.epsilon", np.array(self._spec.norm_eps, np.float32))
        normal = op("Div", wide, op("Sqrt", op("Add", mean, epsilon)))
        return op("Mul", self._cast(normal, self.dtype), self._vector(name, weight))

    def residual_norm(
        self, states: ir.Value, residual: ir.Value, name: str, weight: Float
    ) -> tuple[ir.Value, ir.Value]:
        """An Add and the norm."""
        total = self.graph.op("Add", states, residual)
        return self.norm(total, name, weight), total

    def start(self) -> None:
        """Declare attention_mask int64 [B, T] as well; compute rotary tables and which keys each token sees."""
        op, spec, constant = self.graph.op, self._spec, self.graph.constant
        mask = self.graph.input("attention_mask", ir.DataType.INT64, ("batch_size", "total_length"))
        position_ids = self.graph.input("position_ids", ir.DataType.INT64, (3, "batch_size", "length"))
        axis_last = op("Transpose", op("Cast", position_ids, to=ir.DataType.FLOAT), perm=[1, 2, 0])  # [B, S, 3]
        angles = op("MatMul", axis_last, constant("rope.matrix", spec.rope))
        angles = op("Unsqueeze", op("Concat", angles, angles, axis=-1), constant("axis.2", np.array([2])))
        scale = constant("rope.scale", np.array(spec.rope_scale, np.float32))
        self._cos, self._sin = (  # [B, S, 1, d]
            self._cast(op("Mul", op(kind, angles), scale), self.dtype) for kind in ("Cos", "Sin")
        )
        self._total = op("Shape", mask, start=1)  # [1], T
        zero, one = (constant(f"int.{n}", np.array(n)) for n in (0, 1))
        axis = constant("axis.0", np.array([0]))
        total = op("Squeeze", self._total, axis)
        first = op("Sub", total, op("Squeeze", op("Shape", position_ids, start=2), axis))
        keys, own = op("Range", zero, total, one), op("Range", first, total, one)
        causal = op("LessOrEqual", keys, op("Unsqueeze", own, constant("axis.1", np.array([1]))))  # [S, T]
        # [B, 1, 1, 1, T]
        given = op("Unsqueeze", op("Cast", mask, to=ir.DataType.BOOL), constant("axis.123", np.array([1, 2, 3])))
        none, hidden = (
            constant(name, np.array(value, np.float32)) for name, value in (("seen", 0), ("hidden", _HIDDEN))
        )
        self._mask = op("Where", op("And", causal, given), none, hidden)  # [B, 1, 1, S, T]

    def cache_shape(self, length: str) -> tuple[Dim, ...]:
        """[B, kv_heads, length, d]."""
        return ("batch_size", self._spec.kv_heads, length, self._spec.head_dim)

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
        shared, dim = spec.heads // spec.kv_heads, spec.head_dim
        query, key, value = (self._reshape(states, 0, 0, -1, dim) for states in (query, key, value))  # [B, S, heads, d]
        if norms is not None:
            query, key = self.norm(query, *norms[0]), self.norm(key, *norms[1])
        scale = self._vector("attention.scale", np.array(dim**-0.5, np.float32))
        query, key = op("Mul", self._rotate(query), scale), self._rotate(key)
        present_key, present_value = (
            op("Concat", old, op("Transpose", new, perm=[0, 2, 1, 3]), axis=2)  # [B, kv, T, d]
            for old, new in zip(past, (key, value), strict=True)
        )
        rows = op("Transpose", self._reshape(query, 0, 0, spec.kv_heads, shared, dim), perm=[0, 2, 3, 1, 4])
        scores = op("MatMul", self._reshape(rows, 0, 0, -1, dim), op("Transpose", present_key, perm=[0, 1, 3, 2]))
        by_head = self._cast(self._by_keys(scores, 0, 0, shared, -1), ir.DataType.FLOAT)  # [B, kv, shared, S, T]
        weights = self._cast(op("Softmax", op("Add", by_head, self._mask), axis=-1), self.dtype)
        mixed = op("MatMul", self._by_keys(weights, 0, 0, -1), present_value)  # [B, kv, shared·S, d]
        mixed = op("Transpose", self._reshape(mixed, 0, 0, shared, -1, dim), perm=[0, 3, 1, 2, 4])
        return self._reshape(mixed, 0, 0, spec.heads * dim), present_key, present_value

    def _rotate(self, states: ir.Value) -> ir.Value:
        """Rotary embedding of [B, S, heads, d] in halves."""
        op, half = self.graph.op, self._spec.head_dim // 2
        sizes = self.graph.constant("split.halves", np.array([half, half]))
        first, second = self.graph.ops("Split", states, sizes, outputs=2, axis=-1)
        turned = op("Concat", op("Neg", second), first, axis=-1)
        return op("Add", op("Mul", states, self._cos), op("Mul", turned, self._sin))

    def _reshape(self, states: ir.Value, *shape: int) -> ir.Value:
        name = "shape." + ".".join(map(str, shape))
        return self.graph.op("Reshape", states, self.graph.constant(name, np.array(shape)))

    def _by_keys(self, states: ir.Value, *shape: int) -> ir.Value:
        """Reshape to these sizes and T."""
        sizes = self.graph.constant("shape." + ".".join(map(str, shape)), np.array(shape))
        return self.graph.op("Reshape", states, self.graph.op("Concat", sizes, self._total, axis=0))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Change between float32 and the activation dtype; nothing to do where they are the same."""
        return value if self.dtype == ir.DataType.FLOAT else self.graph.op("Cast", value, to=dtype)

    def _vector(self, name: str, array: Float) -> ir.Value:
        return self.graph.constant(name, cast_float(array, self.dtype))
