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
    delta_net: tuple[str, ...] = (),
    norm_offset: float = 0.0,
) -> Modules:
    """Return the module names of a family whose language model is built as Llama or Qwen2; see `Modules`.

    Args:
        text_root: see `Modules`, as for all others.
        vision_root: of the tower.
        vision_blocks: of the tower.
        mergers: behind the tower.
        hub_prefixes: of published files.
        delta_net: the linears of linear attention, which some blocks have in place of attention; all but the last read
            the norm's output.
        norm_offset: of the decoder's norms.
    """
    linears = (*_ATTENTION, *delta_net, *_MLP)
    names = "|".join(map(re.escape, linears))
    return Modules(
        blocks=f"{text_root}.layers",
        linears=linears,
        norm_linears={
            "input_layernorm": (*_ATTENTION[:-1], *delta_net[:-1]),
            "post_attention_layernorm": _MLP[:-1],
        },
        linear_pairs={"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"},
        text_root=text_root,
        vision_root=vision_root,
        vision_blocks=vision_blocks,
        mergers=mergers,
        lora_targets=rf"{re.escape(text_root)}\.layers\.\d+\.({names})",
        hub_prefixes=hub_prefixes,
        norm_offset=norm_offset,
    )
