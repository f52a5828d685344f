"""Tokenizers built as each family's are, with the family's own special tokens, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from builders import _SPLIT, SPECIAL_TOKENS

_CORPUS = (
    "Locate the left clock and output its bbox coordinates in JSON format.",
    "Please provide the bounding box coordinate of the region this sentence describes: the larger ballet shoes",
    '[{"bbox_2d": [103, 24, 576, 989], "label": "the owl above the door"}] [0.12, 0.34, 0.56, 0.78] 1000',
    "You are a helpful assistant. system user assistant User: Assistant: System: USER: ASSISTANT:",
    "What colour is the cactus to the right of the red cup? It is green.\n\n",
)

INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
IDEFICS_TOKENS = [
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]

LFM2_TOKENS = [
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)),
]


def _byte_level(special: Sequence[str], split: Any, *, begin: str = "") -> Tokenizer:
    """Train a byte-level BPE tokenizer, as GPT-2's relatives have; `begin` is put before every sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return tokenizer


def qwen_tokenizer(more: Sequence[str]) -> Tokenizer:
    """Return a tokenizer as Qwen2's, with more special tokens."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"), level])
    return _byte_level([*SPECIAL_TOKENS, *more], split)


def smollm_tokenizer(special: Sequence[str], *, begin: str = "") -> Tokenizer:
    """Return a tokenizer as SmolLM2's: GPT-2's, with single digits."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    return _byte_level(special, split, begin=begin)


def llama_tokenizer(*, legacy: bool) -> Tokenizer:
    """Return a tokenizer as Llama's: SentencePiece's spaces, single digits, bytes for the unknown, `<s>` before all.

    Converted the old way, every text between two special tokens gets a space in front; the new way only the first.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    scheme = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    digits = pre_tokenizers.Digits(individual_digits=True)  # SentencePiece's split_digits: no merge has one
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, scheme])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special[:3], show_progress=False)
    tokenizer.train_from_iterator([text.strip() for text in _CORPUS] * 4, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {token: place for place, token in enumerate(special)}
    for token in model["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    llama = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        llama.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    llama.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    return llama
