"""Gated delta-net layers (linear attention, arXiv 2412.06464): their sizes, parameters and place in the graph.

Such a layer carries a state of fixed size from token to token where attention has a cache that grows: the last inputs
of a short convolution, and a matrix for each head of the values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from edgetune_export.graph import Dim
from edgetune_runtime.quant.blocks import Float

LINEARS = (
    "linear_attn.in_proj_qkv",
    "linear_attn.in_proj_z",
    "linear_attn.in_proj_b",
    "linear_attn.in_proj_a",
    "linear_attn.out_proj",
)
"""The linear layers of a delta net, in place of those of attention; all but the last read the same input."""

DTYPE = ir.DataType.FLOAT
"""Delta nets and short convolutions are computed in float32 also where the rest is float16: a delta net's state sums up
every token before, and onnxruntime's CPU kernels, with which every export is checked, have nothing else for either."""


@dataclass(frozen=True)
class DeltaSpec:
    """Sizes of a delta net.

    Attributes:
        key_heads: of queries and keys; each serves as many heads of values as there are more of these.
        value_heads: of values.
        key_dim: of a head of queries or keys.
        value_dim: of a head of values.
        kernel: tokens that the convolution sees.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @classmethod
    def of(cls, module: Any) -> DeltaSpec:
        """Read them off a layer of transformers."""
        return cls(
            module.num_k_heads, module.num_v_heads, module.head_k_dim, module.head_v_dim, module.conv_kernel_size
        )

    @property
    def keys(self) -> int:
        """Channels of all queries, or of all keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Channels of all values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values

    def shapes(self, batch: Dim) -> dict[str, tuple[Dim, ...]]:
        """Shapes of the states in the graph's interface; their names stand where those of key and value would."""
        states = (batch, self.value_heads, self.key_dim, self.value_dim)
        return {"conv": (batch, self.channels, self.kernel - 1), "state": states}


@dataclass(frozen=True)
class DeltaParameters:
    """What a delta net has beside linear layers, in float32.

    Attributes:
        name: of the layer.
        kernel: of the convolution [channels, 1, kernel], read when the graph is written.
        decay: [value_heads], minus the exponential of what the model keeps (A_log).
        step: bias of the decay's input (dt_bias) [value_heads].
        norm: of each head of the output [value_dim].
    """

    name: str
    kernel: Callable[[], Float]
    decay: Float
    step: Float
    norm: Float

    @classmethod
    def of(cls, name: str, module: Any, read: Callable[[Any], Float]) -> DeltaParameters:
        """Read them with a function that gives a parameter's values."""
        return cls(
            name,
            lambda: read(module.conv1d.weight),
            -np.exp(read(module.A_log)),
            read(module.dt_bias),
            read(module.norm.weight),
        )


@runtime_checkable
class DeltaDialect(Protocol):
    """A `Dialect` that knows delta nets as well."""

    def delta(
        self,
        mixed: tuple[ir.Value, ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        parameters: DeltaParameters,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Linear attention.

        Args:
            mixed: queries, keys and values [B, S, channels], the output's gate [B, S, values], and the inputs of
                update rate and decay [B, S, value_heads] each, all in the dialect's dtype.
            past: conv and state, as `DeltaSpec.shapes` says, in `DTYPE`.
            parameters: of the layer.

        Returns:
            The output [B, S, values], and the present conv and state.
        """
