"""LLaVA-1.5: bare `[x1, y1, x2, y2]` with two decimals, 0-1 of the padded square, 336x336 (arXiv 2310.03744)."""

from __future__ import annotations

from edgetune_runtime.families.base import Chat, Family

FAMILY = Family(
    name="llava",
    title="LLaVA-1.5",
    model_types=("llava",),
    box_frame="padded01",
    box_style="plain",
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
    ),
    ground_prompt=("Please provide the bounding box coordinate of the region this sentence describes: {phrase}"),
    absent="[]",
    stop_tokens=("</s>",),
)
