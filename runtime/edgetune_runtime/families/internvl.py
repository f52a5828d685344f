"""InternVL 2.5 and 3 (HF format): `<ref>` and `<box>[[...]]</box>`, 0-1000, tiled input (arXiv 2412.05271).

The prompt is that of the `-hf` checkpoints' template, which has no system prompt; the original code has one in Chinese.
"""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family
from edgetune_runtime.families.decoder import llama_modules

FAMILY = Family(
    name="internvl",
    title="InternVL",
    model_types=("internvl",),
    box_format=BoxFormat("norm1000", "ref_box_list"),
    resize="tiles",
    patch_size=14,
    temporal_patch_size=1,
    merge_size=2,
    chat=Chat(
        prefix="<|im_start|>user\n",
        before_image="",
        image_token="<IMG_CONTEXT>",
        after_image="\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        user="<|im_start|>user\n",
        between="\n",
        system="<|im_start|>system\n{text}<|im_end|>\n",
    ),
    ground_prompt=(
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{phrase}</ref>"
    ),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    special_tokens={"image": "<IMG_CONTEXT>", "pad": "<|endoftext|>"},
    modules=llama_modules(
        text_root="model.language_model",
        vision_root="model.vision_tower",
        vision_blocks="model.vision_tower.encoder.layer",
        mergers=("model.multi_modal_projector",),
        # OpenGVLab/InternVL3-1B-hf keeps the names of transformers 4, where each part was a model of its own.
        hub_prefixes=(
            ("model.language_model.", "language_model.model."),
            ("model.vision_tower.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("lm_head.", "language_model.lm_head."),
        ),
    ),
    tower="internvl",
)
