"""The `ort` dialect: onnxruntime's fused operators (com.microsoft), on CPU and CUDA."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetune_export.decoder.delta import DeltaParameters
from edgetune_export.decoder.dialects.ort_conv import write_short_conv
from edgetune_export.decoder.dialects.ort_delta import rms_norm, write_delta
from edgetune_export.decoder.linear import Linear, shared
from edgetune_export.decoder.short_conv import ConvParameters
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.graph import MICROSOFT, Dim, GraphBuilder, cast_float
from edgetune_runtime.backends.onnx.inputs import MASK
from edgetune_runtime.quant.blocks import BlockWeight, Float

INT8_ACTIVATIONS = 4
"""MatMulNBits accuracy_level that lets CPU kernels round activations to int8 by block: the fast path of every CPU."""


class OrtDialect:
    """Writes `edgetune_export.decoder.dialects.Dialect` with GroupQueryAttention, RotaryEmbedding and MatMulNBits.

    Args:
        graph: receives the nodes.
        spec: the decoder.
        dtype: activation dtype, FLOAT or FLOAT16 (what CUDA's GroupQueryAttention needs).
        accuracy_level: MatMulNBits attribute; 1 keeps activations in float32.
    """

    opset = 20
    batch: Dim = "batch_size"  # the only free dimension that transformers.js does not take for 0
    input_dtype = ir.DataType.FLOAT
    chooses = True

    def __init__(
        self, graph: GraphBuilder, spec: DecoderSpec, dtype: ir.DataType, *, accuracy_level: int = INT8_ACTIVATIONS
    ) -> None:
        self.graph = graph
        self.dtype = dtype
        self._spec = spec
        self._accuracy_level = accuracy_level

    def linear(self, states: ir.Value, linear: Linear) -> ir.Value:
        """MatMul for dense weights, MatMulNBits for block formats."""
        rows, columns = linear.rows, linear.columns
        bias = linear.bias()
        bias_value = None if bias is None else self._vector(f"{linear.name}.bias", bias)
        if linear.format is None:
            weight = self.graph.weight(
                f"{linear.name}.weight", self.dtype, (columns, rows), lambda: cast_float(linear.dense().T, self.dtype)
            )
            product = self.graph.op("MatMul", states, weight)
            return product if bias_value is None else self.graph.op("Add", product, bias_value)
        fmt = linear.format
        groups = -(-columns // fmt.block)
        packed = (rows, groups, fmt.block * fmt.bits // 8)
        blocks = shared(linear, uses=2 if fmt.symmetric else 3)
        codes = self.graph.weight(
            f"{linear.name}.weight_codes", ir.DataType.UINT8, packed, lambda: blocks().packed_codes()
        )
        scales = self.graph.weight(
            f"{linear.name}.weight_scales", self.dtype, (rows, groups), lambda: cast_float(blocks().scales, self.dtype)
        )
        zeros = None
        if not fmt.symmetric:
            shape = (rows, -(-groups * fmt.bits // 8))
            zeros = self.graph.weight(f"{linear.name}.weight_zeros", ir.DataType.UINT8, shape, lambda: _zeros(blocks()))
        inputs = [states, codes, scales, zeros, None, bias_value]
        while inputs[-1] is None:
            inputs.pop()
        return self.graph.op(
            "MatMulNBits",
            *inputs,
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=fmt.bits,
            block_size=fmt.block,
            accuracy_level=self._accuracy_level,
        )

    def norm(self, states: ir.Value, name: str, weight: Float) -> ir.Value:
        """A norm that no residual is added before."""
        return rms_norm(self.graph, states, self._vector(name, weight), self._spec.norm_eps)

    def residual_norm(
        self, states: ir.Value, residual: ir.Value, name: str, weight: Float
    ) -> tuple[ir.Value, ir.Value]:
        """SkipSimplifiedLayerNormalization; its fourth output is the sum."""
        outputs = self.graph.ops(
            "SkipSimplifiedLayerNormalization",
            states,
            residual,
            self._vector(name, weight),
            outputs=4,
            domain=MICROSOFT,
            epsilon=self._spec.norm_eps,
        )
        outputs[1].name = outputs[2].name = ""  # statistics that only training needs
        return outputs[0], outputs[3]

    def cache_shape(self, length: str) -> tuple[Dim, ...]:
        """[B, kv_heads, T, d]."""
        return (self.batch, self._spec.kv_heads, length, self._spec.head_dim)

    def start(self) -> None:
        """Rotary tables of this call's own tokens, and the key lengths from attention_mask int64 [B, T].

        RotaryEmbedding wants a table indexed by position. Ours has one row a token of this call, computed from its
        three positions, so the index is just the token's number.
        """
        op, spec = self.graph.op, self._spec
        attention_mask = self.graph.input("attention_mask", ir.DataType.INT64, (self.batch, "total_length"))
        position_ids = self.graph.input("position_ids", ir.DataType.INT64, (3, self.batch, "length"))
        half = spec.rope.shape[1]
        axis_last = op("Transpose", op("Cast", position_ids, to=ir.DataType.FLOAT), perm=[1, 2, 0])  # [B, S, 3]
        angles = op("MatMul", axis_last, self.graph.constant("rope.matrix", spec.rope))
        flat = op("Reshape", angles, self.graph.constant("rope.table_shape", np.array([-1, half])))  # [B·S, d/2]
        tables = []
        for kind in ("Cos", "Sin"):
            table = op(kind, flat)
            if spec.rope_scale != 1:
                table = op("Mul", table, self.graph.constant("rope.scale", np.array(spec.rope_scale, np.float32)))
            tables.append(table if self.dtype == ir.DataType.FLOAT else op("Cast", table, to=self.dtype))
        self._cos, self._sin = tables
        batch_and_length = op("Shape", position_ids, start=1)
        zero, one = (self.graph.constant(f"int.{n}", np.array(n)) for n in (0, 1))
        numbers = op("Range", zero, op("ReduceProd", batch_and_length, keepdims=0), one)
        self._rows = op("Reshape", numbers, batch_and_length)  # [B, S]
        last = op("Sub", op("ReduceSum", attention_mask, self.graph.constant("axis.1", np.array([1])), keepdims=0), one)
        self._last_key = op("Cast", last, to=ir.DataType.INT32)  # [B]
        total = op("Gather", op("Shape", attention_mask), one)
        self._bias = None
        if self.dtype == ir.DataType.FLOAT:  # attention on CUDA takes none
            shape = ("bias_batch", "bias_heads", "bias_length", "bias_total")
            bias = self.graph.optional(MASK, np.zeros((1, 1, 1, 1), np.float32), shape)
            ones = self.graph.constant("bias.ones", np.array([1, 1]))
            sizes = op(
                "Concat",
                ones,
                *(
                    op("Reshape", size, self.graph.constant("axis.1", np.array([1])))
                    for size in (op("Gather", batch_and_length, one), total)
                ),
                axis=0,
            )
            self._bias = op("Expand", bias, sizes)  # [1, 1, S, T]
        self._total = op("Cast", total, to=ir.DataType.INT32)

    def attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
        norms: tuple[tuple[str, Float], tuple[str, Float]] | None,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """GroupQueryAttention; it writes into the past buffer when past and present are bound to the same memory."""
        if norms is not None:
            query = self._head_norm(query, *norms[0])
            key = self._head_norm(key, *norms[1])
        spec, turning = self._spec, 2 * self._spec.rope.shape[1]
        partly: list[dict[str, int]] = [{}, {}]
        if turning < spec.head_dim:
            partly = [{"rotary_embedding_dim": turning, "num_heads": heads} for heads in (spec.heads, spec.kv_heads)]
        query, key = (
            self.graph.op("RotaryEmbedding", states, self._rows, self._cos, self._sin, domain=MICROSOFT, **options)
            for states, options in zip((query, key), partly, strict=True)
        )
        outputs = self.graph.ops(
            "GroupQueryAttention",
            query,
            key,
            value,
            *past,
            self._last_key,
            self._total,
            *(() if self._bias is None else (None, None, None, self._bias)),
            outputs=3,
            domain=MICROSOFT,
            num_heads=self._spec.heads,
            kv_num_heads=self._spec.kv_heads,
        )
        return outputs[0], outputs[1], outputs[2]

    def delta(
        self,
        mixed: tuple[ir.Value, ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        parameters: DeltaParameters,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Linear attention with a state."""
        spec = self._spec
        assert spec.delta is not None
        return write_delta(self.graph, spec.delta, mixed, past, parameters, norm_eps=spec.norm_eps, dtype=self.dtype)

    def short_conv(
        self, mixed: tuple[ir.Value, ir.Value, ir.Value], past: ir.Value, parameters: ConvParameters
    ) -> tuple[ir.Value, ir.Value]:
        """A short convolution with a state."""
        spec = self._spec.conv
        assert spec is not None
        return write_short_conv(self.graph, spec, mixed, past, parameters, dtype=self.dtype)

    def _head_norm(self, states: ir.Value, name: str, weight: Float) -> ir.Value:
        """RMS norm of each head of [B, S, heads·d]."""
        by_head = self.graph.constant("shape.by_head", np.array([0, 0, -1, self._spec.head_dim]))
        flat = self.graph.constant("shape.flat", np.array([0, 0, -1]))
        return self.graph.op("Reshape", self.norm(self.graph.op("Reshape", states, by_head), name, weight), flat)

    def _vector(self, name: str, array: Float) -> ir.Value:
        return self.graph.constant(name, cast_float(array, self.dtype))


def _zeros(blocks: BlockWeight) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    packed = blocks.packed_zero_points()
    assert packed is not None
    return packed
