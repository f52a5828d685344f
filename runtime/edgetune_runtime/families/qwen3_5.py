"""Qwen3.5: gated delta-net layers beside attention with a gate; boxes, pictures and tower as Qwen3-VL's, no DeepStack.

Three of four blocks are linear attention (arXiv 2412.06464). The prompt is the template's without thinking: an empty
block of thoughts before the answer. Published: Qwen/Qwen3.5-0.8B and larger.
"""

from __future__ import annotations

import re
from dataclasses import replace

from edgetune_runtime.families import qwen3_vl
from edgetune_runtime.families.base import Modules

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_DELTA_NET = (
    "linear_attn.in_proj_qkv",
    "linear_attn.in_proj_z",
    "linear_attn.in_proj_b",
    "linear_attn.in_proj_a",
    "linear_attn.out_proj",
)
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NAMES = "|".join(map(re.escape, (*_ATTENTION, *_DELTA_NET, *_MLP)))

FAMILY = replace(
    qwen3_vl.FAMILY,
    name="qwen3_5",
    title="Qwen3.5",
    model_types=("qwen3_5",),
    chat=replace(qwen3_vl.FAMILY.chat, opening="<think>\n\n</think>\n\n"),
    recurrent=True,
    modules=Modules(
        blocks="model.language_model.layers",
        linears=(*_ATTENTION, *_DELTA_NET, *_MLP),
        norm_linears={
            "input_layernorm": (*_ATTENTION[:3], *_DELTA_NET[:4]),
            "post_attention_layernorm": _MLP[:2],
        },
        linear_pairs={"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"},
        text_root="model.language_model",
        vision_root="model.visual",
        vision_blocks="model.visual.blocks",
        mergers=("model.visual.merger",),
        lora_targets=rf"model\.language_model\.layers\.\d+\.({_NAMES})",
        norm_offset=1.0,
        # Published checkpoints use the same names as transformers.
        hub_prefixes=(),
    ),
)
