"""Qwen3.5: gated delta-net layers beside attention with a gate; boxes, pictures and tower as Qwen3-VL's, no DeepStack.

Three of four blocks are linear attention (arXiv 2412.06464). The prompt is the template's without thinking: an empty
block of thoughts before the answer. Published: Qwen/Qwen3.5-0.8B and larger.
"""

from __future__ import annotations

from dataclasses import replace

from edgetune_runtime.families import qwen3_vl
from edgetune_runtime.families.decoder import llama_modules

FAMILY = replace(
    qwen3_vl.FAMILY,
    name="qwen3_5",
    title="Qwen3.5",
    model_types=("qwen3_5",),
    chat=replace(qwen3_vl.FAMILY.chat, opening="<think>\n\n</think>\n\n"),
    recurrent=True,
    modules=llama_modules(
        text_root="model.language_model",
        vision_root="model.visual",
        vision_blocks="model.visual.blocks",
        mergers=("model.visual.merger",),
        mixer=(
            "linear_attn.in_proj_qkv",
            "linear_attn.in_proj_z",
            "linear_attn.in_proj_b",
            "linear_attn.in_proj_a",
            "linear_attn.out_proj",
        ),
        norm_offset=1.0,
    ),
)
