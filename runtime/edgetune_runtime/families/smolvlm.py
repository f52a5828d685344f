"""SmolVLM: no box format of its own, so it is taught Qwen3-VL's JSON in 0-1000 (arXiv 2504.05299)."""

from __future__ import annotations

from edgetune_runtime.families.base import Chat, Family

FAMILY = Family(
    name="smolvlm",
    title="SmolVLM",
    model_types=("smolvlm", "idefics3"),
    box_frame="norm1000",
    box_style="json",
    resize="tiles",
    patch_size=16,
    temporal_patch_size=1,
    merge_size=4,
    chat=Chat(
        prefix="<|im_start|>User:",
        before_image="<fake_token_around_image><global-img>",
        image_token="<image>",
        after_image="<fake_token_around_image>",
        suffix="<end_of_utterance>\nAssistant:",
        end="<end_of_utterance>",
    ),
    ground_prompt="Locate {phrase} and output its bbox coordinates in JSON format.",
    absent="[]",
    stop_tokens=("<end_of_utterance>",),
)
