"""SmolVLM and SmolVLM2: no box format of their own, so they are taught Qwen3-VL's JSON in 0-1000 (arXiv 2504.05299)."""

from __future__ import annotations

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families.base import Chat, Family
from edgetune_runtime.families.decoder import llama_modules

FAMILY = Family(
    name="smolvlm",
    title="SmolVLM",
    model_types=("smolvlm", "idefics3"),  # the first SmolVLMs call themselves idefics3
    box_format=BoxFormat("norm1000", "json"),
    resize="split",
    patch_size=16,
    temporal_patch_size=1,
    merge_size=4,
    chat=Chat(
        prefix="<|im_start|>User:",
        before_image="",
        image_token="<image>",
        after_image="",
        suffix="<end_of_utterance>\nAssistant:",
        end="<end_of_utterance>",
        user="User:",
        between="\n",
        system="<|im_start|>System: {text}<end_of_utterance>\n",
        before_text=" ",
        before_answer=" ",
    ),
    ground_prompt="Locate {phrase} and output its bbox coordinates in JSON format.",
    stop_tokens=("<end_of_utterance>",),
    special_tokens={"image": "<image>", "pad": "<|im_end|>"},
    modules=llama_modules(
        text_root="model.text_model",
        vision_root="model.vision_model",
        vision_blocks="model.vision_model.encoder.layers",
        mergers=("model.connector",),
        # HuggingFaceTB/SmolVLM-256M-Instruct uses the same names as transformers.
        hub_prefixes=(),
    ),
    tower="idefics3",
)
