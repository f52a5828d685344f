"""Random layers to solve, with inputs that are correlated and of uneven size, as those of real models are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgetune_calibrate.solve import LinearGroup
from edgetune_runtime.quant.blocks import BlockWeight


def inputs(seed: int, tokens: int, columns: int) -> Tensor:
    """Return inputs [tokens, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    sizes = torch.exp(torch.randn(columns, generator=generator))
    x: Tensor = torch.randn(tokens, columns, generator=generator) @ mixing * sizes
    return x


def layer(seed: int = 0, rows: int = 24, columns: int = 256, tokens: int = 600) -> tuple[Tensor, Tensor]:
    """Return a weight [rows, columns] and the Hessian [columns, columns] of its inputs."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1000 + seed))
    x = inputs(seed, tokens, columns)
    return weight, x.T @ x / tokens


def group_of(weight: Tensor, hessian: Tensor, cross: Tensor | None = None) -> LinearGroup:
    """Return the problem of one linear, "a"."""
    return LinearGroup({"a": weight}, hessian, 600, cross)


def loss(weight: Tensor, solved: BlockWeight, hessian: Tensor) -> float:
    """Return tr(E H Eᵀ) of a solution, computed in float64 by numpy."""
    error = weight.double().numpy() - solved.dequantize().astype(np.float64)
    return float(np.einsum("ni,ij,nj->", error, hessian.double().numpy(), error))
