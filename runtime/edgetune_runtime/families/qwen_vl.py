"""Qwen-VL, the first one: `<ref>` and `<box>` tags, 0-1000, 448x448 input (arXiv 2308.12966)."""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family

FAMILY = Family(
    name="qwen_vl",
    title="Qwen-VL",
    model_types=("qwen",),
    box_format=BoxFormat("norm1000", "ref_box"),
    resize="square",
    patch_size=14,
    temporal_patch_size=1,
    merge_size=2,
    chat=Chat(
        prefix="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        before_image="Picture 1: <img>",
        image_token="<imgpad>",
        after_image="</img>\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
    ),
    ground_prompt="Detect the bounding box of <ref>{phrase}</ref>.",
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
)
