"""Opening a Hugging Face checkpoint for export, and refusing one that would export into something wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.streaming import FileTensors, Replaced, StreamedModel, Tensors, skeleton
from edgetune_core.weightset import HEAD
from edgetune_export.dequantize import Dequantized
from edgetune_export.prequantized import PrequantizedSet, declared_quantization, read_prequantized
from edgetune_export.vision.writer import VisionSource
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Family, Modules
from edgetune_runtime.images.base import Preprocessing
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


KEPT = 1 << 28
"""Bytes of weights that stay loaded once they are read: small models are read once, large ones block by block."""


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose weights are read as they are needed; its model computes in float32."""

    folder: Path
    streamed: StreamedModel
    config: dict[str, Any]
    family: Family
    modules: Modules
    spec: Preprocessing
    tokens: dict[str, Any]
    """Ids by role; "eos" is the sorted list of ids that end an answer."""
    quantized: PrequantizedSet | None = None
    """The exact values of a checkpoint that is quantized already; its model has them dequantized."""

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.streamed.model

    @property
    def vision(self) -> VisionSource:
        """What its vision tower is written from."""
        return VisionSource(self.model, self.modules, self.streamed.values)


def open_checkpoint(folder: Path, *, device: str = "cpu") -> OpenCheckpoint:
    """Open a merged checkpoint.

    Args:
        folder: where it is.
        device: where its model computes.

    Raises:
        InputError: the folder is missing, holds an adapter, has an unsupported model type, lacks its preprocessor
            config, tokenizer or some weights, its chat template is not the family's, or it is quantized in a way that
            cannot be read.
    """
    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # patches are embedded by a convolution, in float32 like all else
    source = HubCheckpoint.open(folder, exported=True, quantized=True)
    config, modules = source.config, source.modules
    source.check_template()
    tokens = _token_ids(folder, AutoTokenizer.from_pretrained(folder, local_files_only=True), source.family)
    quantization = declared_quantization(folder, config)
    quantized = None if quantization is None else read_prequantized(folder, quantization, modules)
    try:
        built: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        if quantized is None:
            tensors: Tensors = FileTensors(folder, modules)
        else:
            built, tensors = _dequantized(built, quantized, FileTensors(folder, modules))
        streamed = StreamedModel(built, tensors, modules, device=device, keep=KEPT, name=str(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"{folder}: transformers cannot load it: {str(error)[:300]}") from error
    return OpenCheckpoint(folder, streamed, config, source.family, modules, source.spec, tokens, quantized)


def _dequantized(config: Any, quantized: PrequantizedSet, files: Tensors) -> tuple[Any, Tensors]:
    """The float32 model that a quantized checkpoint stands for: its config and tensors, without the quantizer."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if HEAD in quantized:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    model = skeleton(config, torch.float32)
    without = set(quantized.stored)
    for name in quantized.layers:
        bias = f"{name}.bias"
        if bias in files.shapes() and model.get_submodule(name).bias is None and not files.read(bias).any():
            without.add(bias)  # some writers give every quantized layer one
    values = {f"{name}.weight": Dequantized.of(quantized, name) for name in quantized.layers}
    shapes = {f"{name}.weight": layer.shape for name, layer in quantized.layers.items()}
    return config, Replaced(files, values, shapes, without)


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
