"""Module names of the decoder that most families share: RMSNorm, grouped-query attention and SwiGLU as in Llama."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    mixer: tuple[str, ...] = (),
    norm_offset: float = 0.0,
    spelled: Mapping[str, str] | None = None,
) -> Modules:
    """Return the module names of a family whose language model is built as Llama or Qwen2; see `Modules`.

    Args:
        text_root: see `Modules`, as for all others.
        vision_root: of the tower.
        vision_blocks: of the tower.
        mergers: behind the tower.
        hub_prefixes: of published files.
        mixer: the linears of what some blocks have in place of attention; all but the last read the norm's output.
        norm_offset: of the decoder's norms.
        spelled: parts that have other names than Llama's.
    """
    names = spelled or {}

    def called(*roles: str) -> tuple[str, ...]:
        return tuple(names.get(role, role) for role in roles)

    attention, mlp = called(*_ATTENTION), called(*_MLP)
    before_mixer, before_mlp = called("input_layernorm", "post_attention_layernorm")
    linears = (*attention, *mixer, *mlp)
    targets = "|".join(map(re.escape, linears))
    return Modules(
        blocks=f"{text_root}.layers",
        linears=linears,
        norm_linears={before_mixer: (*attention[:-1], *mixer[:-1]), before_mlp: mlp[:-1]},
        linear_pairs={attention[2]: attention[3], mlp[1]: mlp[2]},
        text_root=text_root,
        vision_root=vision_root,
        vision_blocks=vision_blocks,
        mergers=mergers,
        lora_targets=rf"{re.escape(text_root)}\.layers\.\d+\.({targets})",
        hub_prefixes=hub_prefixes,
        norm_offset=norm_offset,
        spelled=names,
    )
