"""Loading a Hugging Face checkpoint for export, and refusing one that would export into something wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as transformers_logging

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.weightset import HEAD
from edgetune_export.prequantized import PrequantizedSet, declared_quantization, read_prequantized
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Family
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json

COPIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a checkpoint that other loaders look for; those that exist travel with the bundle."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A loaded checkpoint; the model computes in float32 on the CPU."""

    folder: Path
    model: Any
    config: dict[str, Any]
    family: Family
    spec: ImageSpec
    tokens: dict[str, Any]
    """Ids by role; "eos" is the sorted list of ids that end an answer."""
    quantized: PrequantizedSet | None = None
    """The exact values of a checkpoint that is quantized already; its model holds them dequantized."""


def load_checkpoint(folder: Path) -> LoadedCheckpoint:
    """Load a merged checkpoint.

    Raises:
        InputError: the folder is missing, holds an adapter, has an unsupported model type, lacks its preprocessor
            config, tokenizer or some weights, its chat template is not the family's, or it is quantized in a way that
            cannot be read.
    """
    source = HubCheckpoint.open(folder, exported=True, quantized=True)
    config, family, spec = source.config, source.family, source.smart_spec
    source.check_template()
    tokens = _token_ids(folder, AutoTokenizer.from_pretrained(folder, local_files_only=True), family)
    quantization = declared_quantization(folder, config)
    if quantization is None:
        return LoadedCheckpoint(folder, _load_model(folder), config, family, spec, tokens)
    quantized = read_prequantized(folder, quantization, source.modules)
    return LoadedCheckpoint(folder, _load_dequantized(folder, quantized), config, family, spec, tokens, quantized)


def _load_model(folder: Path) -> Any:
    """Load with float32 weights; refuse a checkpoint that does not fill the model exactly."""
    # Its bar draws over the export's own, and off terminals too.
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: transformers cannot load it: {str(error)[:300]}") from error
    return _filled(folder, *loaded)


def _load_dequantized(folder: Path, quantized: PrequantizedSet) -> Any:
    """Load a quantized checkpoint as the float32 model that it stands for, without the quantizer's own library."""
    transformers_logging.disable_progress_bar()
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if HEAD in quantized:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config)
    tensors = quantized.dense_tensors()
    for name, layer in quantized.layers.items():
        bias = f"{layer.prefix}.bias"
        if bias in tensors and skeleton.get_submodule(name).bias is None and not tensors[bias].any():
            del tensors[bias]  # some writers give every quantized layer one
    loaded: Any = type(skeleton).from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
    )
    return _filled(folder, *loaded)


def _filled(folder: Path, model: Any, report: Any) -> Any:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report[kind]))
        if names:
            # transformers would fill missing weights with random numbers and go on.
            raise InputError(
                f"{folder}: {len(names)} {kind.replace('_', ' ')} when loading, such as {names[0]}",
                hint="the weights and config.json must belong to the same model",
            )
    return model.eval()


def _token_ids(folder: Path, tokenizer: Any, family: Family) -> dict[str, Any]:
    known = tokenizer.get_vocab()
    for token in (*family.special_tokens.values(), *family.stop_tokens):
        if token not in known:
            raise InputError(f"{folder}: the tokenizer has no {token}", hint="use the tokenizer of the base model")
    stop = {known[token] for token in family.stop_tokens}
    path = folder / "generation_config.json"
    if path.is_file():
        declared = read_json(path).get("eos_token_id") or []
        stop |= set(declared) if isinstance(declared, list) else {declared}
    return {"eos": sorted(stop), **{role: known[token] for role, token in family.special_tokens.items()}}
