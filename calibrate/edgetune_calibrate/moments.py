"""Second moments of what linear layers read, added up over calibration tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune_calibrate.solve.rows import row_parts, values_of
from edgetune_runtime.quant.blocks import BlockWeight


@dataclass
class Moments:
    """Weighted sums over tokens t of x_t x_tᵀ and, where the unquantized model's inputs x̂ are known, (x̂_t - x_t) x_tᵀ.

    Attributes:
        second: float32 [K, K] sum of w_t x_t x_tᵀ.
        cross: float32 [K, K] sum of w_t (x̂_t - x_t) x_tᵀ, or None.
        weight: sum of w_t.
        tokens: how many tokens had a weight above 0.
    """

    second: Tensor | None = None
    cross: Tensor | None = None
    weight: float = 0.0
    tokens: int = 0

    def add(self, x: Tensor, weights: Tensor, original: Tensor | None = None) -> None:
        """Add the tokens of a batch.

        Args:
            x: inputs of the quantized model, [B, S, K] in any float dtype.
            weights: float32 [B, S] on the same device; tokens of weight 0 are left out.
            original: the unquantized model's inputs at the same tokens, as `x`.
        """
        seen = weights > 0
        rows, scale = x[seen].float(), weights[seen][:, None]
        self.second = _plus(self.second, rows.T @ (rows * scale))
        if original is not None:
            self.cross = _plus(self.cross, (original[seen].float() - rows).T @ (rows * scale))
        self.weight += float(scale.sum())
        self.tokens += len(rows)

    def means(self) -> tuple[Tensor, Tensor | None]:
        """Return the sums divided by the sum of weights."""
        assert self.second is not None
        return self.second / self.weight, None if self.cross is None else self.cross / self.weight


def _plus(total: Tensor | None, addend: Tensor) -> Tensor:
    return addend if total is None else total.add_(addend)


def relative_error(weight: Tensor, solved: BlockWeight, hessian: Tensor) -> float:
    """Return the share of a layer's output energy lost: tr(E H Eᵀ) / tr(W H Wᵀ) with E = W - solved, [N, K]."""
    lost = energy = 0.0
    for rows in row_parts(*weight.shape):
        part = weight[rows]
        error = part - values_of(solved, weight.device, rows)
        energy += float(((part @ hessian) * part).sum(dtype=torch.float64))
        lost += float(((error @ hessian) * error).sum(dtype=torch.float64))
    return lost / max(energy, 1e-30)
