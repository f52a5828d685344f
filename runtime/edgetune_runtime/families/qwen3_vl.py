"""Qwen3-VL: JSON boxes in 0-1000 of the image, patch 16, DeepStack, interleaved M-RoPE (arXiv 2511.21631)."""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family
from edgetune_runtime.families.decoder import llama_modules

FAMILY = Family(
    name="qwen3_vl",
    title="Qwen3-VL",
    model_types=("qwen3_vl",),
    box_format=BoxFormat("norm1000", "json"),
    resize="smart",
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    chat=Chat(
        prefix="<|im_start|>user\n",
        before_image="<|vision_start|>",
        image_token="<|image_pad|>",
        after_image="<|vision_end|>",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        user="<|im_start|>user\n",
        between="\n",
        system="<|im_start|>system\n{text}<|im_end|>\n",
    ),
    ground_prompt="Locate {phrase} and output its bbox coordinates in JSON format.",
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    special_tokens={
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "pad": "<|endoftext|>",
    },
    tower="patches",
    modules=llama_modules(
        text_root="model.language_model",
        vision_root="model.visual",
        vision_blocks="model.visual.blocks",
        mergers=("model.visual.merger", "model.visual.deepstack_merger_list"),
    ),
)
