"""Muon for weight matrices, AdamW for everything else, both as a handful of batched kernels.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by its nearest
semi-orthogonal matrix, found by five Newton-Schulz steps; the update is scaled by 0.2·√max(rows, columns) so that its
size matches AdamW's and both share one learning rate (Liu 2025, arXiv 2502.16982). Matrices of one shape are stacked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(x: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices of x [K, rows, columns] bf16: singular values near 1."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if tall else x


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a weight matrix has no gradient: call backward() before step()")
    return parameter.grad


class Optimizer:
    """One object for both rules.

    Args:
        model: linear weights inside blocks, mergers and layers go to Muon; embeddings, norms, biases to AdamW.
        decay: decoupled weight decay of matrices.
    """

    def __init__(self, model: nn.Module, decay: float = 0.05) -> None:
        self.decay = decay
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        rest = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
            else:
                rest.append(parameter)
        self.momentum = {
            shape: torch.zeros(len(same), *shape, device=same[0].device) for shape, same in self.groups.items()
        }
        fused = rest[0].device.type == "cuda"
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        self.orthogonalise = torch.compile(orthogonalise) if fused else orthogonalise

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at learning rate `rate`; clears the gradients."""
        for shape, same in self.groups.items():
            gradient = torch.stack([_gradient(parameter) for parameter in same])
            momentum = self.momentum[shape].lerp_(gradient, 0.05)
            update = self.orthogonalise(gradient.lerp(momentum, 0.95).bfloat16())
            scale = 0.2 * max(shape) ** 0.5
            torch._foreach_mul_(same, 1 - rate * self.decay)
            torch._foreach_add_(same, list(update.float().unbind(0)), alpha=-rate * scale)
            for parameter in same:
                parameter.grad = None
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
