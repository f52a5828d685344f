"""Idefics3: SmolVLM's larger relative, in Llama 3's tokens; it is taught Qwen3-VL's JSON too (arXiv 2408.12637)."""

from __future__ import annotations

from dataclasses import replace

from edgetune_runtime.families import smolvlm

_CHAT = smolvlm.FAMILY.chat

FAMILY = replace(
    smolvlm.FAMILY,
    name="idefics3",
    title="Idefics3",
    model_types=("idefics3",),
    patch_size=14,
    merge_size=2,
    chat=replace(
        _CHAT,
        prefix="<|begin_of_text|>User:",
        system="<|begin_of_text|>System: {text}<end_of_utterance>\n",
    ),
    stop_tokens=("<end_of_utterance>", "<|end_of_text|>"),
    special_tokens={"image": "<image>", "pad": "<|end_of_text|>"},
    marker="<|begin_of_text|>",
)
