"""Qwen2-VL: boxes in special tokens, 0-1000 of the image; the rest as Qwen2.5-VL (arXiv 2409.12191)."""

from __future__ import annotations

from dataclasses import replace

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.families import qwen2_5_vl

FAMILY = replace(
    qwen2_5_vl.FAMILY,
    name="qwen2_vl",
    title="Qwen2-VL",
    model_types=("qwen2_vl",),
    box_format=BoxFormat("norm1000", "special_ref_box"),
    ground_prompt="Detect the bounding box of {phrase}.",
)
