"""InternVL 2 and later: `<ref>` and `<box>[[...]]</box>`, 0-1000, tiled input (arXiv 2412.05271)."""

from __future__ import annotations

from edgetune_runtime.families.base import Chat, Family

FAMILY = Family(
    name="internvl",
    title="InternVL",
    model_types=("internvl", "internvl_chat"),
    box_frame="norm1000",
    box_style="ref_box_list",
    resize="tiles",
    patch_size=14,
    temporal_patch_size=1,
    merge_size=2,
    chat=Chat(
        prefix="<|im_start|>user\n",
        before_image="<img>",
        image_token="<IMG_CONTEXT>",
        after_image="</img>\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
    ),
    ground_prompt=(
        "Please provide the bounding box coordinate of the region this sentence describes: <ref>{phrase}</ref>"
    ),
    absent="[]",
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
)
