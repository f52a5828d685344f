"""Second moments of what linear layers read, added up over calibration tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune_calibrate.solve.rows import row_parts, values_of
from edgetune_runtime.quant.blocks import BlockWeight


@dataclass(frozen=True)
class TokenWeights:
    """How much each token of a batch counts.

    Attributes:
        seen: int64 [T], places of those that count among all [B · S]; None where all do.
        values: float32 [T, 1], how much each of them counts; None where each counts 1.
        tokens: how many they are.
        total: the sum of `values`.
    """

    seen: Tensor | None
    values: Tensor | None
    tokens: int
    total: float

    @classmethod
    def of(cls, weights: Tensor, device: torch.device) -> TokenWeights:
        """Sort out weights [B, S] of any float dtype, those of 0 left out."""
        flat = weights.flatten().float().cpu()
        seen = flat.nonzero()[:, 0]
        values = flat[seen][:, None]
        return cls(
            None if len(seen) == len(flat) else seen.to(device),
            None if bool((values == 1).all()) else values.to(device),
            len(seen),
            float(values.sum()),
        )

    def rows(self, x: Tensor) -> Tensor:
        """The tokens [T, K] of [B, S, K] that count."""
        flat = x.flatten(0, 1)
        return flat if self.seen is None else flat[self.seen]

    def scaled(self, rows: Tensor) -> Tensor:
        """Tokens [T, K], each as often as it counts."""
        return rows if self.values is None else rows * self.values


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

    def add(self, x: Tensor, weights: TokenWeights, original: Tensor | None = None) -> None:
        """Add the tokens of a batch.

        Args:
            x: inputs of the quantized model, [B, S, K] in any float dtype.
            weights: of the batch, on the same device.
            original: the unquantized model's inputs at the same tokens, as `x`.
        """
        rows = weights.rows(x)
        exact = _exact(rows) and weights.values is None
        seen = rows if exact else rows.float()
        scaled = seen if exact else weights.scaled(seen)
        self.second = _plus(self.second, _product(seen, scaled))
        if original is not None:
            change = weights.rows(original).float() - rows.float()
            if exact:  # a float32 in two parts of 8 digits each
                high = change.to(seen.dtype)
                low = (change - high.float()).to(seen.dtype)
                self.cross = _plus(self.cross, _product(torch.cat([high, low]), torch.cat([seen, seen])))
            else:
                self.cross = _plus(self.cross, _product(change, scaled))
        self.weight += weights.total
        self.tokens += weights.tokens

    def means(self) -> tuple[Tensor, Tensor | None]:
        """Return the sums divided by the sum of weights."""
        assert self.second is not None
        return self.second / self.weight, None if self.cross is None else self.cross / self.weight


def _exact(rows: Tensor) -> bool:
    """Whether the GPU's bfloat16 product adds up exact products in float32, at a tenth of a float32 product's time."""
    return rows.is_cuda and rows.dtype == torch.bfloat16


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The float32 [K, K] of tokens [T, K]: leftᵀ right."""
    if left.dtype == torch.float32:
        return left.T @ right
    product: Tensor = torch.mm(left.T, right, out_dtype=torch.float32)
    return product


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
