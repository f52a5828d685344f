"""LFM2-VL: short convolutions beside attention, pictures at their own aspect ratio (arXiv 2511.23404).

It has no box format of its own, so it is taught Qwen3-VL's JSON in 0-1000. Published: LiquidAI/LFM2-VL-450M and larger,
under a licence of their own (LFM Open License), which asks companies above a revenue for an agreement.
"""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family
from edgetune_runtime.families.decoder import llama_modules

FAMILY = Family(
    name="lfm2_vl",
    title="LFM2-VL",
    model_types=("lfm2_vl",),
    box_format=BoxFormat("norm1000", "json"),
    resize="naflex",
    patch_size=16,
    temporal_patch_size=1,
    merge_size=2,
    chat=Chat(
        prefix="<|startoftext|><|im_start|>user\n",
        before_image="",
        image_token="<image>",
        after_image="",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        user="<|im_start|>user\n",
        between="\n",
        system="<|startoftext|><|im_start|>system\n{text}<|im_end|>\n",
    ),
    ground_prompt="Locate {phrase} and output its bbox coordinates in JSON format.",
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    special_tokens={"image": "<image>", "pad": "<|pad|>"},
    recurrent=True,
    modules=llama_modules(
        text_root="model.language_model",
        vision_root="model.vision_tower",
        vision_blocks="model.vision_tower.encoder.layers",
        mergers=("model.multi_modal_projector",),
        # LiquidAI/LFM2-VL-450M keeps the tower in a part of its own.
        hub_prefixes=(("model.vision_tower.", "model.vision_tower.vision_model."),),
        mixer=("conv.in_proj", "conv.out_proj"),
        spelled={
            "input_layernorm": "operator_norm",
            "post_attention_layernorm": "ffn_norm",
            "norm": "embedding_norm",
            "self_attn.o_proj": "self_attn.out_proj",
            "self_attn.q_norm": "self_attn.q_layernorm",
            "self_attn.k_norm": "self_attn.k_layernorm",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
        },
    ),
    tower="lfm2_vl",
)
