"""Module names of the decoder that most families share: RMSNorm, grouped-query attention and SwiGLU as in Llama."""

from __future__ import annotations

import re

from edgetune_runtime.families.base import Modules

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def llama_modules(
    *,
    text_root: str,
    vision_root: str,
    vision_blocks: str,
    mergers: tuple[str, ...],
    hub_prefixes: tuple[tuple[str, str], ...] = (),
) -> Modules:
    """Return the module names of a family whose language model is built as Llama or Qwen2; see `Modules`."""
    names = "|".join(map(re.escape, (*_ATTENTION, *_MLP)))
    return Modules(
        blocks=f"{text_root}.layers",
        linears=(*_ATTENTION, *_MLP),
        norm_linears={"input_layernorm": _ATTENTION[:3], "post_attention_layernorm": _MLP[:2]},
        linear_pairs={"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"},
        text_root=text_root,
        vision_root=vision_root,
        vision_blocks=vision_blocks,
        mergers=mergers,
        lora_targets=rf"{re.escape(text_root)}\.layers\.\d+\.({names})",
        hub_prefixes=hub_prefixes,
    )
