"""LLaVA-OneVision: bare `[x1, y1, x2, y2]` with two decimals, 0-1 of the picture, any resolution (arXiv 2408.03326).

The frame is that in which its authors score RefCOCO (lmms-eval, refcoco_bbox_rec): of width and height, since the
overview is the stretched picture and not a padded one as in LLaVA-1.5. The prompt is that of the `llava-hf` conversion,
which has no system prompt; the original training has Qwen2's.
"""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family
from edgetune_runtime.families.decoder import llama_modules

FAMILY = Family(
    name="llava_onevision",
    title="LLaVA-OneVision",
    model_types=("llava_onevision",),
    box_format=BoxFormat("norm01", "plain", decimals=2),
    resize="anyres",
    patch_size=14,
    temporal_patch_size=1,
    merge_size=1,
    chat=Chat(
        prefix="<|im_start|>user\n",
        before_image="",
        image_token="<image>",
        after_image="\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        user="<|im_start|>user\n",
        between="\n",
        system="<|im_start|>system\n{text}<|im_end|>\n",
    ),
    ground_prompt=("Please provide the bounding box coordinate of the region this sentence describes: {phrase}"),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    special_tokens={"image": "<image>", "pad": "<|endoftext|>"},
    modules=llama_modules(
        text_root="model.language_model",
        vision_root="model.vision_tower",
        vision_blocks="model.vision_tower.encoder.layers",
        mergers=("model.multi_modal_projector",),
        # llava-hf/llava-onevision-qwen2-0.5b-ov-hf keeps the names of transformers 4; saved by transformers 5, the
        # tower's are shorter.
        hub_prefixes=(
            ("model.language_model.", "language_model.model."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.vision_tower.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.image_newline", "image_newline"),
            ("lm_head.", "language_model.lm_head."),
        ),
    ),
    tower="llava_onevision",
)
