"""A vision tower whose batch is one sequence of patches, as Qwen's: the same computed with fewer calls.

transformers calls SDPA for each picture, or window of one, in each layer, and waits for the GPU to know their lengths;
torch's kernel for segments is called once. The embedding of patches is a convolution whose kernel covers its input, for
which libraries have no fast way, and a product in fact.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from edgetune_train.attention import VARLEN, varlen_attention

_NAME = "torch_varlen_flash"
"""The kernel's name here: transformers tells only what it takes for FlashAttention where pictures begin."""

SEGMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What a pack says of where its samples begin."""


def quicken(tower: Any, attention: str) -> None:
    """Make a tower compute faster what it computes, to rounding; one that has a row for each picture stays as it is.

    Args:
        tower: of transformers.
        attention: the implementation that `choose_attention` found.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size == module.stride:
            module.forward = partial(_multiply, module, module.forward)  # type: ignore[method-assign]
    told = any("cu_seqlens" in inspect.signature(module.forward).parameters for module in tower.modules())
    tower.register_forward_pre_hook(_leave_segments, with_kwargs=True)
    if told and attention == VARLEN:
        registry: Any = AttentionInterface
        registry.register(_NAME, varlen_attention)
        tower.config._attn_implementation = _NAME


def as_published(tower: Any) -> None:
    """Make a tower what transformers made it again."""
    tower._forward_pre_hooks.clear()
    tower._forward_pre_hooks_with_kwargs.clear()
    for module in tower.modules():
        module.__dict__.pop("forward", None)
    tower.config._attn_implementation = "sdpa"


def _leave_segments(_: nn.Module, words: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take from a tower's arguments what transformers hands down to it of the pack: its pictures begin elsewhere."""
    return words, {name: value for name, value in named.items() if name not in SEGMENTS}


def _multiply(layer: nn.Conv3d, convolve: Any, patches: torch.Tensor) -> torch.Tensor:
    """Return a convolution's output [patches, out, 1, 1, 1] for patches [patches, C, T, P, P] of its kernel's size."""
    if patches.shape[2:] != layer.kernel_size:
        result: torch.Tensor = convolve(patches)
        return result
    return nn.functional.linear(patches.flatten(1), layer.weight.flatten(1), layer.bias)[:, :, None, None, None]
