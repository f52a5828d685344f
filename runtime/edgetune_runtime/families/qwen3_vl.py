"""Qwen3-VL: JSON boxes in 0-1000 of the image, patch 16, DeepStack, interleaved M-RoPE (arXiv 2511.21631)."""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family, Modules

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
    modules=Modules(
        blocks="model.language_model.layers",
        linears=(
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ),
        norm_linears={
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        },
        linear_pairs={"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"},
        text_root="model.language_model",
        vision_root="model.visual",
        vision_blocks="model.visual.blocks",
        mergers=("model.visual.merger", "model.visual.deepstack_merger_list"),
        lora_targets=(
            r"model\.language_model\.layers\.\d+\."
            r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
        ),
        # Published Qwen3-VL checkpoints use the same names as transformers.
        hub_prefixes=(),
    ),
)
