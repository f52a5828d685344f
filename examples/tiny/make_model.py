"""Write a tiny model's checkpoint folder with random weights: tokenizer, config, preprocessor, chat template.

`train_base.py` fills in trained weights. Usage: `python make_model.py qwen3_vl|internvl [--output FOLDER]`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import scenes
from edgetune_runtime.families import get_family

VOCABULARY = 2048
# Words by letters, every digit on its own: what Qwen's tokenizer does.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""Both have Qwen3's decoder: grouped queries, q/k norms, a tied head."""


@dataclass(frozen=True)
class Recipe:
    """What makes a checkpoint one of its family.

    Attributes:
        family: its name among edgetune's families.
        folder: where the committed checkpoint lies.
        special: special tokens, in the order of the published vocabulary.
        template: the chat template; `{picture}` in it is what stands for a picture.
        answer: an answer, with a first coordinate and a phrase to be filled in.
        build: the model of the ids of its special tokens.
        preprocessor: its preprocessor_config.json.
        named: special tokens that the processor asks its tokenizer for by name.
        processor: its processor_config.json; None leaves it out.
    """

    family: str
    folder: str
    special: tuple[str, ...]
    template: str
    answer: str
    build: Callable[[dict[str, int]], Any]
    preprocessor: dict[str, Any]
    named: dict[str, str] = field(default_factory=dict)
    processor: dict[str, Any] | None = None


TURNS = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' or 'image' in part %}{image}
{%- elif part.type == 'video' or 'video' in part %}{video}
{%- else %}{{ part.text }}{% endif -%}
{% endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def corpus(recipe: Recipe) -> Iterator[str]:
    """What the tokenizer is trained on: prompts and answers about random scenes, and every object's name."""
    rng, prompt = random.Random(7), get_family(recipe.family).ground_prompt
    for entry in scenes.OBJECTS:
        for word in ("the", "left", "an old", "two"):
            yield f"user assistant: Find {word} {entry['name']}, please."
    everything = scenes.KNOWN + scenes.NOVEL
    for _ in range(20000):
        scene = scenes.draw_scene(rng, [0], everything)
        phrase = scenes.draw_phrase(rng, scene, everything).text
        yield prompt.format(phrase=phrase)
        yield recipe.answer.replace("{x}", str(rng.randrange(1001))).replace("{phrase}", phrase)
        question = scenes.draw_question(rng, scene, everything)
        yield f"{question.text} {question.answer}"


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """A byte-level BPE (Sennrich 2016, on bytes) with single digits and the family's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        corpus(recipe),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(recipe.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def qwen3_vl(ids: dict[str, int]) -> Qwen3VLForConditionalGeneration:
    """19.57 M parameters and every part of Qwen3-VL: DeepStack, interleaved M-RoPE, grouped queries, q/k norms."""
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=TEXT
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [12, 10, 10],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 8,
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_heads": 4,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "out_hidden_size": 384,
                "num_position_embeddings": 256,
                "deepstack_visual_indexes": [2, 5],
            },
            tie_word_embeddings=True,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )


def internvl(ids: dict[str, int]) -> InternVLForConditionalGeneration:
    """18.05 M parameters and every part of InternVL 3.5: tiles and a thumbnail, InternViT, pixel shuffle, Qwen3."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return InternVLForConditionalGeneration(
        InternVLConfig(
            text_config=TEXT | {"model_type": "qwen3", "num_hidden_layers": 8, "rope_parameters": rope},
            vision_config={
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 8,
                "num_attention_heads": 4,
                "image_size": [TILE, TILE],
                "patch_size": [14, 14],
                "attention_bias": True,
                "layer_scale_init_value": 1.0,
            },
            tie_word_embeddings=True,
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=TILE_TOKENS,
            downsample_ratio=0.5,
        )
    )


TILE = 112
TILE_TOKENS = (TILE // 28) ** 2
QWEN3_VL = Recipe(
    family="qwen3_vl",
    folder="model",
    special=(
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
        "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>",
    ),
    template=TURNS.replace("{image}", "<|vision_start|><|image_pad|><|vision_end|>").replace(
        "{video}", "<|vision_start|><|video_pad|><|vision_end|>"
    ),
    answer='[{"bbox_2d": [{x}, 24, 576, 1000], "label": "{phrase}"}]',
    build=qwen3_vl,
    preprocessor={
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 49152, "longest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
)  # fmt: skip
INTERNVL = Recipe(
    family="internvl",
    folder="model-internvl",
    special=(
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>",
        "<ref>", "</ref>", "<box>", "</box>", "<video>",
    ),
    template=TURNS.replace("{image}", "<IMG_CONTEXT>{{ '\n' }}").replace("{video}", "<video>{{ '\n' }}"),
    answer="<ref>{phrase}</ref><box>[[{x}, 24, 576, 1000]]</box>",
    build=internvl,
    preprocessor={
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 6,
        "size": {"height": TILE, "width": TILE},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    named={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    processor={"processor_class": "InternVLProcessor", "image_seq_length": TILE_TOKENS},
)  # fmt: skip
RECIPES = {recipe.family: recipe for recipe in (QWEN3_VL, INTERNVL)}


def write(recipe: Recipe, output: Path) -> int:
    """Write the folder; returns the number of parameters."""
    tokenizer = train_tokenizer(recipe)
    torch.manual_seed(0)
    model = recipe.build({token: number for number, token in enumerate(recipe.special)})  # numbered in their order
    model.bfloat16()
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad, do_sample=False)
    model.save_pretrained(output)
    others = [token for token in recipe.special if token not in ("<|im_end|>", "<|endoftext|>", *recipe.named.values())]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=others,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        **({"extra_special_tokens": recipe.named} if recipe.named else {}),
    )
    wrapped.chat_template = recipe.template
    wrapped.save_pretrained(output)
    for name, content in (
        ("preprocessor_config.json", recipe.preprocessor),
        ("processor_config.json", recipe.processor),
    ):
        if content is not None:
            (output / name).write_text(json.dumps(content, indent=2) + "\n")
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=sorted(RECIPES))
    parser.add_argument("--output", type=Path, help="default: where the committed checkpoint lies")
    args = parser.parse_args()
    recipe = RECIPES[args.family]
    output = args.output or Path(__file__).parent / recipe.folder
    print(f"{output}: {write(recipe, output) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
