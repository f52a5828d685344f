"""Checkpoints of each family: real special tokens, chat template and preprocessing; tiny random weights, or none.

Templates and values are those of the published checkpoints that each builder names. With `weights=False` the pictures'
sizes are the published ones too; with weights they are shrunk, so that a test affords the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from builders import QWEN2_5_VL_TEMPLATE
from families import templates
from families.vocabularies import (
    IDEFICS_TOKENS,
    INTERNVL_TOKENS,
    LFM2_TOKENS,
    llama_tokenizer,
    qwen_tokenizer,
    smollm_tokenizer,
)
from families.writing import TOWER, text_config, write
from lfm2_settings import PUBLISHED

_transformers: Any = transformers


def build_internvl(folder: Path, *, weights: bool = True, text: str = "qwen2") -> Path:
    """Write a checkpoint as OpenGVLab/InternVL3-1B-hf; its preprocessor config says crop_to_patches false, as there.

    Args:
        folder: where it goes.
        weights: write random ones.
        text: kind of the language model: InternVL 3.5 has "qwen3".
    """
    side = 56 if weights else 448

    def config(size: int, ids: dict[str, int]) -> Any:
        vision = {**TOWER, "image_size": [side, side], "patch_size": [14, 14]}
        return _transformers.InternVLConfig(
            vision_config=vision,
            text_config=text_config(text, size, head_dim=32),
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=(side // 28) ** 2,
            downsample_ratio=0.5,
            tie_word_embeddings=False,
        )

    preprocessor = {
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
    named = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    }
    return write(
        folder,
        qwen_tokenizer([*INTERNVL_TOKENS, "<video>"]),
        templates.INTERNVL_TEMPLATE,
        preprocessor,
        config,
        named=named,
        weights=weights,
        processor={"processor_class": "InternVLProcessor", "image_seq_length": (side // 28) ** 2},
    )


def build_llava(folder: Path, *, weights: bool = True, legacy: bool = False, pads: bool = False) -> Path:
    """Write a checkpoint as llava-hf/llava-1.5-7b-hf; its preprocessor cuts the centre out, as there, or pads."""
    side = 56 if weights else 336

    def config(size: int, ids: dict[str, int]) -> Any:
        vision = {**TOWER, "num_hidden_layers": 3, "model_type": "clip_vision_model", "image_size": side}
        return _transformers.LlavaConfig(
            vision_config={**vision, "patch_size": 14, "projection_dim": 32},
            text_config=text_config("llama", size, bos_token_id=1, eos_token_id=2, num_key_value_heads=4),
            image_token_index=ids["<image>"],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=(side // 14) ** 2,
        )

    preprocessor = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": side},
    }
    if pads:
        preprocessor |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 14,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = llama_tokenizer(legacy=legacy)
    return write(
        folder,
        tokenizer,
        templates.LLAVA_TEMPLATE,
        preprocessor,
        config,
        named=named,
        weights=weights,
        processor=processor,
    )


def build_llava_onevision(folder: Path, *, weights: bool = True) -> Path:
    """Write a checkpoint as llava-hf/llava-onevision-qwen2-0.5b-ov-hf, whose tiles are no whole number of patches."""
    side = 60 if weights else 384
    pinpoints = [[side * rows, side * columns] for rows in range(1, 7) for columns in range(1, 7)]

    def config(size: int, ids: dict[str, int]) -> Any:
        vision = {**TOWER, "model_type": "siglip_vision_model", "image_size": side, "patch_size": 14}
        return _transformers.LlavaOnevisionConfig(
            vision_config={**vision, "vision_use_head": False},
            text_config=text_config("qwen2", size),
            image_token_index=ids["<image>"],
            video_token_index=ids["<video>"],
            image_grid_pinpoints=pinpoints,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_9",
            tie_word_embeddings=False,
        )

    preprocessor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": pinpoints,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
    processor = {
        "image_token": "<image>",
        "num_image_tokens": (side // 14) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
    }
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = qwen_tokenizer(["<image>", "<video>"])
    return write(
        folder,
        tokenizer,
        templates.ONEVISION_TEMPLATE,
        preprocessor,
        config,
        named=named,
        weights=weights,
        processor=processor,
    )


def build_smolvlm(folder: Path, *, weights: bool = True) -> Path:
    """Write a checkpoint as HuggingFaceTB/SmolVLM2-256M-Video-Instruct."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IDEFICS_TOKENS]
    named = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    tower = (32, 8, 2) if weights else (512, 16, 4)
    tokenizer = smollm_tokenizer(tokens)
    return _idefics(folder, "SmolVLM", tower, tokenizer, templates.SMOLVLM_TEMPLATE, named=named, weights=weights)


def build_idefics3(folder: Path, *, weights: bool = True) -> Path:
    """Write a checkpoint as HuggingFaceM4/Idefics3-8B-Llama3."""
    tokens = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *IDEFICS_TOKENS]
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
    tower = (28, 7, 2) if weights else (364, 14, 2)
    tokenizer = smollm_tokenizer(tokens, begin="<|begin_of_text|>")
    return _idefics(folder, "Idefics3", tower, tokenizer, templates.IDEFICS3_TEMPLATE, named=named, weights=weights)


def _idefics(
    folder: Path,
    title: str,
    tower: tuple[int, int, int],
    tokenizer: Tokenizer,
    template: str,
    *,
    named: dict[str, Any],
    weights: bool,
) -> Path:
    side, patch, scale = tower

    def config(size: int, ids: dict[str, int]) -> Any:
        make = getattr(_transformers, f"{title}Config")
        return make(
            vision_config={**TOWER, "image_size": side, "patch_size": patch},
            text_config=text_config("llama", size, pad_token_id=ids[named["pad_token"]]),
            image_token_id=ids["<image>"],
            scale_factor=scale,
            tie_word_embeddings=False,
            pad_token_id=ids[named["pad_token"]],
        )

    preprocessor = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{title}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": side},
        "processor_class": f"{title}Processor",
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 4 * side},
    }
    tokens = (side // patch) ** 2 // scale**2
    processor = {"image_seq_len": tokens, "processor_class": f"{title}Processor"}
    return write(folder, tokenizer, template, preprocessor, config, named=named, weights=weights, processor=processor)


def build_qwen2_vl(folder: Path, *, weights: bool = True, **text: int) -> Path:
    """Write a checkpoint as Qwen/Qwen2-VL-2B-Instruct; its pixel limits are not the class's defaults.

    Args:
        folder: where it goes.
        weights: write random ones.
        text: other sizes of the language model than the tiny ones.
    """

    def config(size: int, ids: dict[str, int]) -> Any:
        hidden, heads = text.get("hidden_size", 128), text.get("num_attention_heads", 4)
        eighth = hidden // heads // 8
        rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [2 * eighth, eighth, eighth]}
        names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        return _transformers.Qwen2VLConfig(
            text_config=text_config("qwen2_vl_text", size, rope_parameters=rope, **text),
            vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": hidden},
            tie_word_embeddings=False,
            **{f"{role}_token_id": ids[f"<|{name}|>"] for role, name in names.items()},
        )

    preprocessor = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 252 * 252 if weights else 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2VLProcessor",
        "temporal_patch_size": 2,
    }
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return write(
        folder,
        qwen_tokenizer([]),
        QWEN2_5_VL_TEMPLATE,
        preprocessor,
        config,
        named=named,
        weights=weights,
        processor={"processor_class": "Qwen2VLProcessor"},
    )


def build_qwen3_5(folder: Path, *, weights: bool = True, **text: int) -> Path:
    """Write a checkpoint as Qwen/Qwen3.5-0.8B: a block of linear attention, and one of attention with a gate.

    Args:
        folder: where it goes.
        weights: write random ones.
        text: other sizes of the language model than the tiny ones.
    """

    def config(size: int, ids: dict[str, int]) -> Any:
        rope = {
            "rope_type": "default",
            "rope_theta": 10_000_000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
        kinds = {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            **text,
        }
        names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        return _transformers.Qwen3_5Config(
            text_config=text_config("qwen3_5_text", size, head_dim=32, rope_parameters=rope, **kinds),
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 128,
                "num_position_embeddings": 64,
            },
            tie_word_embeddings=False,
            **{f"{role}_token_id": ids[f"<|{name}|>"] for role, name in names.items()},
        )

    preprocessor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": 2,
        "patch_size": 16,
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 256 * 256 if weights else 16777216, "shortest_edge": 4096 if weights else 65536},
        "temporal_patch_size": 2,
    }
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return write(
        folder,
        qwen_tokenizer(["<think>", "</think>"]),
        templates.QWEN3_5_TEMPLATE,
        preprocessor,
        config,
        named=named,
        weights=weights,
        processor={"processor_class": "Qwen3VLProcessor"},
    )


def build_lfm2_vl(folder: Path, *, weights: bool = True) -> Path:
    """Write a checkpoint as LiquidAI/LFM2-VL-450M: a block of a short convolution, and one of attention."""

    def config(size: int, ids: dict[str, int]) -> Any:
        kinds = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False, "norm_eps": 1e-5}
        vision = {"model_type": "siglip2_vision_model", "num_patches": 36 if weights else 256, "patch_size": 16}
        return _transformers.Lfm2VlConfig(
            text_config=text_config("lfm2", size, **kinds),
            vision_config={**TOWER, **vision, "vision_use_head": False},
            image_token_id=ids["<image>"],
            projector_hidden_size=48,
            downsample_factor=2,
            tie_word_embeddings=False,
        )

    small = {"tile_size": 128, "min_image_tokens": 4, "max_image_tokens": 16, "max_tiles": 4}
    preprocessor = {**PUBLISHED, "processor_class": "Lfm2VlProcessor", **(small if weights else {})}
    named = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    return write(
        folder,
        smollm_tokenizer(LFM2_TOKENS, begin="<|startoftext|>"),
        templates.LFM2_VL_TEMPLATE,
        preprocessor,
        config,
        named=named,
        weights=weights,
        processor={"processor_class": "Lfm2VlProcessor"},
    )


BUILDERS: dict[str, Callable[..., Path]] = {
    "qwen2_vl": build_qwen2_vl,
    "qwen3_5": build_qwen3_5,
    "internvl": build_internvl,
    "llava": build_llava,
    "llava_onevision": build_llava_onevision,
    "smolvlm": build_smolvlm,
    "idefics3": build_idefics3,
    "lfm2_vl": build_lfm2_vl,
}
