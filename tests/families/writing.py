"""Writing a checkpoint folder: tokenizer, template, preprocessing, config, and random weights if wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Tokenizer

from builders import _spread

_transformers: Any = transformers


def write(
    folder: Path,
    tokenizer: Tokenizer,
    template: str,
    preprocessor: dict[str, Any],
    config: Callable[[int, dict[str, int]], Any],
    *,
    named: dict[str, Any],
    weights: bool,
    processor: dict[str, Any],
) -> Path:
    """Write a checkpoint; `config` makes its config from the vocabulary's size and ids. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = _transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32768, clean_up_tokenization_spaces=False, **named
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
    settings = config(len(wrapped), wrapped.get_vocab())
    settings.save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        model = _transformers.AutoModelForImageTextToText.from_config(settings)
        _spread(cast("torch.nn.Module", model), 0)
        model.save_pretrained(folder)
    return folder


def text_config(kind: str, vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return a tiny language model's config."""
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **more,
    }


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
