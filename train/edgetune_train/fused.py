"""LoRA's update of a layer's output in as few products as it takes.

peft turns the input into float32, the dtype that adapters are kept in, for autocast to turn it back, and scales and
adds the update in calls of their own. On a GPU, which such a step keeps busy for a third of its time, each call costs.
Here the update is two products forward, the second of which scales and adds, and four backward, in the dtype of the
layer's output.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


def fuse(model: nn.Module) -> None:
    """Make LoRA layers compute their update by `_Update` in training; those with dropout or DoRA stay as they are.

    Not for weights that are gathered layer by layer (ZeRO-3): they are there only while peft's own layers compute.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, _Fused):
            kind: Any = _fused(type(module))
            module.__class__ = kind  # a class, not a function of each layer, is compiled once for all


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Fused, kind), {})


class _Fused:
    """What a class of peft's layers becomes."""

    def forward(self: Any, x: torch.Tensor, *words: Any, **named: Any) -> torch.Tensor:
        """Return the output [..., out] for x [..., in]."""
        name, *others = self.active_adapters or [""]
        usual = (
            not (torch.is_grad_enabled() and self.training)
            or self.disable_adapters
            or self.merged
            or bool(words or named or others)
            or name not in self.lora_A
            or name in self.lora_variant
            or not isinstance(self.lora_dropout[name], nn.Identity)
            or self.lora_A[name].bias is not None
            or self.lora_B[name].bias is not None
        )
        if usual:
            result: torch.Tensor = super().forward(x, *words, **named)  # type: ignore[misc]
            return result
        output: torch.Tensor = self.base_layer(x)
        updated: torch.Tensor = _Update.apply(  # type: ignore[no-untyped-call]
            output.flatten(end_dim=-2),
            x.flatten(end_dim=-2),
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return updated.view(output.shape)


class _Update(torch.autograd.Function):
    """y + scale x Aᵀ Bᵀ (LoRA, arXiv 2106.09685) for y [N, out], x [N, in], A [rank, in] and B [out, rank]."""

    @staticmethod
    def forward(
        context: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Compute in y's dtype."""
        x, low, high = (tensor.to(y.dtype) for tensor in (x, a, b))
        hidden = x @ low.T
        context.save_for_backward(x, low, high, hidden)
        context.scale, context.dtype = scale, a.dtype
        return torch.addmm(y, hidden, high.T, alpha=scale)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return what the inputs ask for."""
        (towards,) = gradients
        x, low, high, hidden = context.saved_tensors
        of_y, of_x, of_a, of_b, _ = context.needs_input_grad
        towards_hidden = _scaled(towards, high, context.scale)
        return (
            towards if of_y else None,
            towards_hidden @ low if of_x else None,
            (towards_hidden.T @ x).to(context.dtype) if of_a else None,
            _scaled(towards.T, hidden, context.scale).to(context.dtype) if of_b else None,
            None,
        )


def _scaled(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale · left @ right in one call."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)
