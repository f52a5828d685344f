"""Attention over packed samples, and over the pictures of a batch (`tower`): each sees only itself.

Three ways to the same result, the fastest that is there:

- flash_attention_3, flash_attention_2: the flash-attn packages
- torch_varlen: the FlashAttention kernel that torch (2.11 and later) brings along, for CUDA
- sdpa: torch's scaled dot product attention with a block-diagonal mask, everywhere
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from edgetune_runtime.errors import MissingDependency
from edgetune_train.settings import Attention

VARLEN = "torch_varlen"


def _varlen_options() -> frozenset[str]:
    """What torch's kernel can be told; the first release that had it knew neither scale nor windows."""
    if find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


_VARLEN_OPTIONS = _varlen_options()
"""Found out once: `torch.compile` reads values, and cannot look for packages."""


def choose_attention(wanted: Attention, dtype: torch.dtype) -> str:
    """Return the implementation to use for packed samples; "auto" is the first that is there.

    Raises:
        MissingDependency: the wanted one is not there, or does not compute in this dtype.
    """
    there = {
        "flash_attention_3": is_flash_attn_3_available(),
        "flash_attention_2": is_flash_attn_2_available(),
        VARLEN: torch.cuda.is_available() and {"scale", "window_size"} <= _VARLEN_OPTIONS,
    }
    usable = [name for name, found in there.items() if found and dtype != torch.float32]
    if wanted == "auto":
        return usable[0] if usable else "sdpa"
    if wanted != "sdpa" and wanted not in usable:
        why = "it does not compute in float32" if there[wanted] else "it is not installed for this device"
        raise MissingDependency(f"--attention {wanted}: {why}", hint="--attention auto takes what is there")
    return wanted


def use_attention(model: Any, name: str) -> bool:
    """Make the model's language blocks use an implementation; the vision tower keeps its own.

    Returns:
        Whether batches must tell where samples begin (`Collator.segments`).
    """
    if name == "sdpa":
        return False
    if name == VARLEN:
        registry: Any = AttentionInterface
        registry.register(VARLEN, varlen_attention)
        registry = AttentionMaskInterface
        registry.register(VARLEN, _varlen_mask)
    model.set_attn_implementation({"text_config": name})
    return True


def _varlen_mask(*, attention_mask: torch.Tensor | None = None, **rest: Any) -> torch.Tensor | None:
    """Return no mask for packs, which come without one, and SDPA's for padded batches."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **rest)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention within each sample or picture, [1, L, heads, D], for query, key, value [1, heads, L, D].

    It is causal unless `is_causal` is False. Without segments it is SDPA: validation runs padded batches and generates
    with a cache.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        rest["is_causal"] = is_causal
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        return output, None
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [L, heads, D]
    groups = q.shape[1] // k.shape[1]
    options: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in _VARLEN_OPTIONS:
        options["enable_gqa"] = True
    elif groups > 1:  # torch 2.11 wants as many heads of keys as of queries
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    attended = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        scale=scaling, window_size=(-1, -1 if is_causal is False else 0), **options,
    )  # fmt: skip
    return cast(torch.Tensor, attended)[None], None
