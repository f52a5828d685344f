"""Short convolutions with a gate before and after (LFM2, arXiv 2511.23404): sizes, parameters, place in the graph.

Such a layer mixes each channel of a few tokens, and carries the last of them where attention has a cache that grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import onnx_ir as ir

from edgetune_export.graph import Dim
from edgetune_runtime.quant.blocks import Float

LINEARS = ("conv.in_proj", "conv.out_proj")
"""The linear layers of a short convolution, in place of those of attention."""


@dataclass(frozen=True)
class ConvSpec:
    """Sizes of a short convolution.

    Attributes:
        channels: of its input and its output, each mixed by itself.
        kernel: tokens that it sees.
    """

    channels: int
    kernel: int

    @classmethod
    def of(cls, module: Any) -> ConvSpec:
        """Read them off a layer of transformers."""
        return cls(module.conv.in_channels, module.conv.kernel_size[0])

    def shapes(self, batch: Dim) -> dict[str, tuple[Dim, ...]]:
        """Shape of the state in the graph's interface."""
        return {"conv": (batch, self.channels, self.kernel - 1)}


@dataclass(frozen=True)
class ConvParameters:
    """What a short convolution has beside linear layers, in float32.

    Attributes:
        name: of the layer.
        kernel: [channels, 1, kernel], read when the graph is written.
        bias: [channels], read likewise; None without one.
    """

    name: str
    kernel: Callable[[], Float]
    bias: Callable[[], Float] | None

    @classmethod
    def of(cls, name: str, module: Any, read: Callable[[Any], Float]) -> ConvParameters:
        """Read them with a function that gives a parameter's values."""
        conv = module.conv
        return cls(name, lambda: read(conv.weight), None if conv.bias is None else lambda: read(conv.bias))


@runtime_checkable
class ConvDialect(Protocol):
    """A `Dialect` that knows short convolutions as well."""

    def short_conv(
        self, mixed: tuple[ir.Value, ir.Value, ir.Value], past: ir.Value, parameters: ConvParameters
    ) -> tuple[ir.Value, ir.Value]:
        """Gate, convolve and gate again.

        Args:
            mixed: gate before, gate behind and input [B, S, channels] each, in the dialect's dtype.
            past: the inputs of the last tokens as `ConvSpec.shapes` says, in `delta.DTYPE`.
            parameters: of the layer.

        Returns:
            The output [B, S, channels], and the present state.
        """
