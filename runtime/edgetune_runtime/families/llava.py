"""LLaVA-1.5: bare `[x1, y1, x2, y2]` with two decimals, 0-1 of the padded square, 336x336 (arXiv 2310.03744).

The prompt is that of the `llava-hf` checkpoints' template, which has no system prompt; an answer ends with `</s>` as
in the original training, which the template leaves out.
"""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family
from edgetune_runtime.families.decoder import llama_modules

FAMILY = Family(
    name="llava",
    title="LLaVA-1.5",
    model_types=("llava",),
    box_format=BoxFormat("padded01", "plain", decimals=2),
    resize="pad_square",
    patch_size=14,
    temporal_patch_size=1,
    merge_size=1,
    chat=Chat(
        prefix="USER: ",
        before_image="",
        image_token="<image>",
        after_image="\n",
        suffix=" ASSISTANT:",
        end="</s>",
        user="USER: ",
        between="",
        system="{text} ",
        begin="<s>",
        before_answer=" ",
    ),
    ground_prompt=("Please provide the bounding box coordinate of the region this sentence describes: {phrase}"),
    stop_tokens=("</s>",),
    special_tokens={"image": "<image>", "pad": "<pad>"},
    modules=llama_modules(
        text_root="model.language_model",
        vision_root="model.vision_tower",
        vision_blocks="model.vision_tower.encoder.layers",
        mergers=("model.multi_modal_projector",),
        # llava-hf/llava-1.5-7b-hf keeps the names of transformers 4; saved by transformers 5, the tower's are shorter.
        hub_prefixes=(
            ("model.language_model.", "language_model.model."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.vision_tower.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("lm_head.", "language_model.lm_head."),
        ),
    ),
    tower="llava",
)
