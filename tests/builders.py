"""Small checkpoints with random weights that are real Hugging Face checkpoints of their family.

They keep the structure of the published models (grouped-query attention, DeepStack and q/k norms for
Qwen3-VL, attention biases and windowed vision attention for Qwen2.5-VL) at a size that a test affords.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_MODEL = REPOSITORY / "examples" / "tiny" / "model"
TINY_INTERNVL = TINY_MODEL.with_name("model-internvl")

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Single digits, like Qwen's pre-tokenizer: a coordinate is one token per digit.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_TURNS = (
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the published templates of the two families render for a chat without tools; they differ in the
# default system prompt.
QWEN3_VL_TEMPLATE = "{% for message in messages %}" + _TURNS
QWEN2_5_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + _TURNS
)

_CORPUS = (
    "Locate the left clock and output its bbox coordinates in JSON format.",
    "Locate the larger ballet shoes and output its bbox coordinates in JSON format.",
    '[{"bbox_2d": [103, 24, 576, 989], "label": "the owl above the door"}]',
    "You are a helpful assistant. system user assistant",
    "What colour is the cactus to the right of the red cup? It is green.",
)


@cache
def _trained_tokenizer() -> str:
    """Return the JSON of a small byte-level BPE tokenizer with Qwen's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return tokenizer.to_str()


def _save_tokenizer(folder: Path, template: str) -> PreTrainedTokenizerFast:
    source = TINY_MODEL / "tokenizer.json"
    text = source.read_text(encoding="utf-8") if source.is_file() else _trained_tokenizer()
    tokenizer: PreTrainedTokenizerFast = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=Tokenizer.from_str(text),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    # Processors look for the template in a file of its own as well.
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return tokenizer


def _save(model: Any, folder: Path, preprocessor: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Path:
    model.generation_config = cast(Any, GenerationConfig)(
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")],
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        do_sample=False,
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    return folder


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{role}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for role, name in names.items()}


def _spread(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight again with a spread that makes logits and greedy tokens differ from input to input.

    Vectors (norm gains, biases) get noise around their initial value, or a wrong bias would go unseen. So do short
    convolutions before linear attention: other values make its float32 results depend on the order of sums.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 or parameter.shape[1:2] == (1,):  # a convolution of each channel by itself
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)


def build_qwen3_vl(
    folder: Path,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    layers: int = 4,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    tied: bool = True,
    vocabulary: int | None = None,
    min_pixels: int = 64 * 64,
    max_pixels: int = 256 * 256,
) -> Path:
    """Write a Qwen3-VL checkpoint with random weights and return its folder.

    Structure of the published ones: q/k norms, interleaved M-RoPE, DeepStack from two vision layers,
    patch 16, merge 2, mean and std 0.5, pixel limits in the `size` spelling.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _save_tokenizer(folder, QWEN3_VL_TEMPLATE)
    quarter = head_dim // 8
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer) if vocabulary is None else vocabulary,
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [head_dim // 2 - 2 * quarter, quarter, quarter],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=tied,
        **_token_ids(tokenizer),
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    _spread(model, seed)
    preprocessor = {
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    return _save(cast("torch.nn.Module", model).to(dtype), folder, preprocessor, tokenizer)


def build_qwen2_5_vl(
    folder: Path,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    layers: int = 3,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = False,
    vocabulary: int | None = None,
    min_pixels: int = 56 * 56,
    max_pixels: int = 252 * 252,
) -> Path:
    """Write a Qwen2.5-VL checkpoint with random weights and return its folder.

    Structure of the published ones: q/k/v biases, chunked M-RoPE, windowed vision attention with one
    full-attention layer, patch 14, merge 2, CLIP mean and std, limits as `min_pixels`/`max_pixels`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _save_tokenizer(folder, QWEN2_5_VL_TEMPLATE)
    eighth = hidden // heads // 8
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) if vocabulary is None else vocabulary,
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 4096,
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [hidden // heads // 2 - 2 * eighth, eighth, eighth],
            },
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 120,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": hidden,
        },
        tie_word_embeddings=tied,
        **_token_ids(tokenizer),
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _spread(model, seed)
    preprocessor = {
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    return _save(cast("torch.nn.Module", model).to(dtype), folder, preprocessor, tokenizer)


def copy_checkpoint(source: Path, target: Path) -> Path:
    """Copy a built checkpoint, for tests that damage it."""
    shutil.copytree(source, target)
    return target
