"""What a solver is asked: linears that share one input, the statistics of that input, and how to round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat

Method = Literal["gptq", "awq", "rtn"]


@dataclass(frozen=True)
class LinearGroup:
    """Linears that read one input (q, k and v of a block; gate and up; o or down alone).

    Attributes:
        weights: full module name -> float32 [N, K].
        hessian: float32 [K, K], Σ_t w_t x_t x_tᵀ / Σ_t w_t over the calibration tokens t, x the input as the
            quantized model sees it and w the token's weight.
        tokens: how many tokens were seen.
        cross: float32 [K, K], Σ_t w_t (x̂_t - x_t) x_tᵀ / Σ_t w_t with x̂ the unquantized model's input at the same
            token, or None when x̂ was not captured.
    """

    weights: Mapping[str, Tensor]
    hessian: Tensor
    tokens: int
    cross: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The linears' full module names."""
        return tuple(self.weights)


@dataclass(frozen=True)
class SolveSettings:
    """How to round a group.

    Attributes:
        method: "gptq", "awq" or "rtn".
        bits: 3, 4 or 8.
        group_size: columns that share a scale; must divide K.
        symmetric: zero point fixed at 2^(bits-1) instead of one for each group of columns.
        act_order: GPTQ rounds the columns of largest activation first. Groups stay those of the stored order, so the
            weight set needs no `g_idx`.
        damping: share of the Hessian's mean diagonal that is added to its diagonal.
        sweeps: how often GPTQ's answer is gone through again, scales and codes.
    """

    method: Method = "gptq"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    act_order: bool = True
    damping: float = 0.01
    sweeps: int = 2

    def __post_init__(self) -> None:
        """Refuse values that no solver knows."""
        if self.bits not in (3, 4, 8):
            raise InputError(f"bits is {self.bits}, must be 3, 4 or 8")
        if self.group_size < 1:
            raise InputError(f"group_size is {self.group_size}, must be positive", hint="32, 64 and 128 are usual")
        if self.sweeps < 0:
            raise InputError(f"sweeps is {self.sweeps}, must be at least 0")
        if self.damping <= 0:
            raise InputError(f"damping is {self.damping}, must be positive", hint="0.01 is usual")

    @property
    def format(self) -> BlockFormat:
        """The format of the solved weights."""
        return BlockFormat(self.bits, self.group_size, self.symmetric)
