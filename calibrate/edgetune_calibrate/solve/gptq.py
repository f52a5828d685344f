"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) in its Cholesky form, which needs no inverse.

With H = M Mᵀ, M upper triangular, the layer's error of codes that stand for Q is

    tr((W - Q) H (W - Q)ᵀ) = Σ_j M_jj² ‖w_j - q_j + Σ_{i<j} (w_i - q_i) M_ij / M_jj‖²,

so going through the columns j in order, each is best rounded after adding what the errors of the columns before it
weigh on it. That is GPTQ's update: its factor, the upper Cholesky factor of H⁻¹, is M⁻¹ (the identity with LDLQ is
shown in QuIP, arXiv 2307.13304).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune_calibrate.solve.grid import Grid
from edgetune_runtime.errors import InputError

BLOCK = 128
STRIP = 8
"""Columns of a block between two products with their errors."""
MOST_DAMPING = 1.0


@dataclass(frozen=True)
class Metric:
    """The quadratic form that a group's linears are rounded under.

    Attributes:
        hessian: float32 [K, K], damped.
        order: int64 [K], the columns in the order they are rounded.
        factor: float32 [K, K], upper triangular M with M Mᵀ the Hessian in that order.
    """

    hessian: Tensor
    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, hessian: Tensor, damping: float, *, act_order: bool) -> Metric:
        """Damp and factor a Hessian [K, K].

        Damping of 10 times as much is tried, up to the mean diagonal itself, when rounding errors make the Hessian
        indefinite. An input column that was never active gets the damping as its weight and is rounded on its own.

        Raises:
            InputError: the Hessian holds values that are not finite.
        """
        mean = float(hessian.diagonal().mean())
        if not bool(torch.isfinite(hessian).all()):
            raise InputError("the layer's inputs hold values that are not finite")
        while True:
            damped = hessian.clone()
            damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
            order = damped.diagonal().argsort(descending=True, stable=True) if act_order else None
            order = torch.arange(len(damped), device=damped.device) if order is None else order
            back = order.flip(0)
            # The factor M of H is the lower Cholesky factor of H turned round in both axes, turned back.
            lower, failed = torch.linalg.cholesky_ex(damped[back[:, None], back])
            if not bool(failed):
                return cls(damped, order, lower.flip(0, 1))
            if damping >= MOST_DAMPING:
                raise InputError("the layer's Hessian cannot be factored, even damped by its mean diagonal")
            damping = min(damping * 10, MOST_DAMPING)

    def solve(self, right: Tensor) -> Tensor:
        """Return X [N, K] with X H = `right`."""
        half: Tensor = torch.linalg.solve_triangular(self.factor.T, right[:, self.order], upper=False, left=False)
        answer: Tensor = torch.linalg.solve_triangular(self.factor, half, upper=True, left=False)
        return answer[:, self.order.argsort()]


def gptq(weight: Tensor, grid: Grid, metric: Metric, kernels: Any = None) -> Tensor:
    """Round a weight [N, K] to codes [N, K] on a fixed grid, column by column with error feedback.

    Args:
        weight: float32 [N, K].
        grid: to round to.
        metric: what errors cost.
        kernels: the module of that name, to take the columns of a block in one kernel.
    """
    groups = metric.order // (weight.shape[1] // grid.scale.shape[1])
    weight, factor = weight[:, metric.order].contiguous(), metric.factor.contiguous()
    codes, error = torch.empty_like(weight), torch.empty_like(weight)
    round_columns = _round_columns if kernels is None else kernels.round_columns
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        feedback = error[:, :start] @ factor[:start, start:stop]
        round_columns(weight, grid.scale, grid.zero, groups, factor, feedback, codes, error, start, grid.top)
    return codes[:, metric.order.argsort()]


def _round_columns(
    weight: Tensor, scale: Tensor, zero: Tensor, groups: Tensor, factor: Tensor, feedback: Tensor,
    codes: Tensor, error: Tensor, start: int, top: int,
) -> None:  # fmt: skip
    """The plain loop of `kernels.round_columns`, on arrays that are turned round: a column lies in one piece.

    What an error weighs on later columns is added at once within its strip, and beyond it as a product, strip by strip.
    """
    block = slice(start, start + feedback.shape[1])
    lines, own_groups = factor[block, block], groups[block]
    own, pulled = weight[:, block].T.contiguous(), feedback.T.contiguous()
    steps, offsets = scale.T[own_groups], zero.T[own_groups]
    found, lost = torch.empty_like(own), torch.empty_like(own)
    for first in range(0, len(own), STRIP):
        last = min(first + STRIP, len(own))
        for column in range(first, last):
            step = steps[column]
            wanted = (own[column] + pulled[column] / lines[column, column]).div_(step)
            code = torch.add(wanted.round_(), offsets[column], out=found[column]).clamp_(0, top)
            torch.sub(own[column], (code - offsets[column]).mul_(step), out=lost[column])
            pulled[column + 1 : last].addr_(lines[column, column + 1 : last], lost[column])
        pulled[last:].addmm_(lines[first:last, last:].T, lost[first:last])
    codes[:, block], error[:, block] = found.T, lost.T
