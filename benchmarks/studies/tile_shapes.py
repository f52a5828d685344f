"""The published sizes of models whose towers see tiles: InternVL, LLaVA, SmolVLM, Idefics3 and LFM2-VL (see `shapes`).

Sizes, special tokens and preprocessing are those of the checkpoints on the hub that each is named after.
"""

from __future__ import annotations

from typing import Any

from shape import Shape

_CLIP_MEAN = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_STEPS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 0.00392156862745098,
}
_QWEN = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
_THETA = {"rope_type": "default", "rope_theta": 1_000_000.0}
_SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304}
_LFM_MARKS = tuple(f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11))
_TILE_MARKS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))


def internvl(text: dict[str, Any]) -> Shape:
    """InternVL3 and 3.5 with InternViT-300M."""
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "attention_bias": True,
        "image_size": [448, 448],
        "patch_size": [14, 14],
    }
    preprocessor = {
        **_STEPS,
        **_IMAGENET,
        "crop_to_patches": False,
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "size": {"height": 448, "width": 448},
    }
    more = {"image_seq_length": 256, "downsample_ratio": 0.5}
    marks = ("<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "</ref>", "<box>", "</box>")
    return Shape("internvl", _QWEN | text, vision, False, preprocessor, more, marks, {"image_seq_length": 256})


def llava(text: dict[str, Any]) -> Shape:
    """LLaVA-1.5 with CLIP-L/14 at 336."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
    preprocessor = {
        **_STEPS,
        **_CLIP_MEAN,
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "size": {"shortest_edge": 336},
    }
    more = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_seq_length": 576}
    processor = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    return Shape("llava", text, vision, False, preprocessor, more, ("<s>", "</s>", "<image>", "<pad>"), processor)


def onevision(text: dict[str, Any], *, tied: bool) -> Shape:
    """LLaVA-OneVision with SigLIP so400m/14 at 384."""
    pinpoints = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    vision = {
        **_SIGLIP,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    }
    preprocessor = {
        **_STEPS,
        **_HALF,
        "do_pad": True,
        "image_grid_pinpoints": pinpoints,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "size": {"height": 384, "width": 384},
    }
    more = {
        "image_grid_pinpoints": pinpoints,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    }
    processor = {"num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9"}
    return Shape("llava_onevision", _QWEN | text, vision, tied, preprocessor, more, ("<image>", "<video>"), processor)


def smolvlm(text: dict[str, Any]) -> Shape:
    """SmolVLM with SigLIP base/16 at 512."""
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    common = {"model_type": "llama", "vocab_size": 49280, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}}
    return _split_tiles("SmolVLM", common | rope | text, vision, 4, ("<global-img>", *_TILE_MARKS))


def idefics3(text: dict[str, Any]) -> Shape:
    """Idefics3 with SigLIP so400m/14 at 364."""
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 364,
        "patch_size": 14,
    }
    common = {"model_type": "llama", "vocab_size": 128259, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    return _split_tiles("Idefics3", common | rope | text, vision, 2, ())  # rows and columns are ordinary text


def _split_tiles(title: str, text: dict[str, Any], vision: dict[str, Any], scale: int, tags: tuple[str, ...]) -> Shape:
    """Tiles with their row and column, cut from pictures of four tiles at most along a side."""
    side = vision["image_size"]
    preprocessor = {
        **_STEPS,
        **_HALF,
        "do_image_splitting": True,
        "do_pad": True,
        "image_processor_type": f"{title}ImageProcessor",
        "max_image_size": {"longest_edge": side},
        "processor_class": f"{title}Processor",
        "resample": 1,
        "size": {"longest_edge": 4 * side},
    }
    tokens = (side // vision["patch_size"] // scale) ** 2
    marks = ("<image>", "<end_of_utterance>", "<fake_token_around_image>", *tags)
    more = {"scale_factor": scale}
    return Shape(title.lower(), text, vision, False, preprocessor, more, marks, {"image_seq_len": tokens})


def lfm2_vl(text: dict[str, Any], blocks: str) -> Shape:
    """LFM2-VL with SigLIP2 base/16; of its blocks "c" is a short convolution and "a" attention."""
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_patches": 256,
        "patch_size": 16,
        "vision_use_head": False,
    }
    preprocessor = {
        **_STEPS,
        **_HALF,
        "do_image_splitting": True,
        "do_pad": True,
        "downsample_factor": 2,
        "encoder_patch_size": 16,
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "max_image_tokens": 256,
        "max_pixels_tolerance": 2.0,
        "max_tiles": 10,
        "min_image_tokens": 64,
        "min_tiles": 2,
        "processor_class": "Lfm2VlProcessor",
        "resample": 2,
        "tile_size": 512,
        "use_thumbnail": False,
    }
    common = {"model_type": "lfm2", "vocab_size": 65536, "max_position_embeddings": 128000, "norm_eps": 1e-5}
    kinds = {"layer_types": [{"c": "conv", "a": "full_attention"}[block] for block in blocks]}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}, "num_hidden_layers": len(blocks)}
    marks = ("<|startoftext|>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *_LFM_MARKS)
    more = {"projector_hidden_size": 2560, "downsample_factor": 2}
    return Shape("lfm2_vl", common | kinds | rope | text, vision, True, preprocessor, more, marks, {})


TILE_SHAPES: dict[str, Shape] = {
    "smolvlm-256m": smolvlm(
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        | {"num_attention_heads": 9, "num_key_value_heads": 3}
    ),
    "smolvlm-500m": smolvlm(
        {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
        | {"num_attention_heads": 15, "num_key_value_heads": 5}
    ),
    "idefics3-8b": idefics3(
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": 8}
    ),
    "internvl3-2b": internvl(
        {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        | {"num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151674, "rope_parameters": _THETA}
    ),
    "internvl3.5-2b": internvl(
        {"model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
        | {"rope_parameters": _THETA, "max_position_embeddings": 40960}
    ),
    "llava-onevision-0.5b": onevision(
        {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
        | {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 152000, "rope_parameters": _THETA},
        tied=True,
    ),
    "lfm2-vl-450m": lfm2_vl(
        {"hidden_size": 1024, "intermediate_size": 6656, "num_attention_heads": 16, "num_key_value_heads": 8},
        "ccaccaccacacacac",
    ),
    "llava-1.5-7b": llava(
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}
        | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    ),
}
