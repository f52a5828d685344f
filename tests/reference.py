"""What transformers makes of a checkpoint, in float32 and greedily: the reference of exports and sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers
from PIL import Image
from torch import nn

from edgetune_core.generation import generate_greedily
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_export.check.reference import Case, Sample
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.vision.attention import FUSED, Operators
from edgetune_export.vision.towers import tower_of
from edgetune_export.vision.writer import VisionSource
from edgetune_runtime.families import get_family
from edgetune_runtime.families.base import Modules
from edgetune_runtime.images.smart import ImageSpec, preprocess
from edgetune_runtime.quant.blocks import Float

_transformers: Any = transformers  # much of it is untyped


def load_model(folder: Path) -> Any:
    """Return the model for conditional generation."""
    return _transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def decoder_weights(model: Any, **options: Any) -> DecoderWeights:
    """Return `DecoderWeights` of a model, with its family's names and formats that are dense unless given."""
    options = {"layers_format": None, "head_format": None, **options}
    return DecoderWeights(model, modules_of(model), **options)


def written_tower(model: Any, operators: Operators = FUSED, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """Return the vision tower of a model as a graph, which does not depend on its preprocessing."""
    source = VisionSource(model, modules_of(model))
    return tower_of(get_family(model.config.model_type).tower).write(source, operators, dtype)


def modules_of(model: Any) -> Modules:
    """Return the names of a model's family."""
    modules = get_family(model.config.model_type).modules
    assert modules is not None
    return modules


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer with its chat template."""
    return _transformers.AutoTokenizer.from_pretrained(folder)


def render(tokenizer: Any, text: str, image_tokens: int) -> str:
    """Return the chat template's prompt with the image placeholder repeated (0: without image)."""
    content = [{"type": "image"}] * bool(image_tokens) + [{"type": "text", "text": text}]
    turns = [{"role": "user", "content": content}]
    prompt: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return prompt.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)


def question(folder: Path, image: Image.Image | None, text: str) -> dict[str, Any]:
    """Return the inputs of a Qwen model for a question about an image, or about none."""
    tokenizer = load_tokenizer(folder)
    pixels = None if image is None else preprocess(image, ImageSpec.from_checkpoint(folder))
    ids = torch.tensor([tokenizer(render(tokenizer, text, 0 if pixels is None else pixels.image_tokens)).input_ids])
    if pixels is None:
        return {"input_ids": ids}
    return {
        "input_ids": ids,
        "pixel_values": torch.from_numpy(pixels.pixel_values),
        "image_grid_thw": torch.from_numpy(pixels.grid_thw),
        "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
    }


def greedy_text(folder: Path, image: Image.Image | None, text: str, *, max_new_tokens: int, eos: list[int]) -> str:
    """Return the answer of `generate` to a question about an image, or about none."""
    inputs = question(folder, image, text)
    search = _transformers.GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=0
    )
    tokens = load_model(folder).generate(generation_config=search, **inputs)
    answer: str = load_tokenizer(folder).decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip()


@torch.no_grad()
def greedy_sample(model: Any, case: Case, tokens: dict[str, Any]) -> Sample:
    """Return what a loaded model answers to a case of the self-check, token by token, with logits and image features.

    Args:
        model: of transformers.
        case: a prompt about a picture.
        tokens: ids of the checkpoint's special tokens by role.
    """
    images = {name: torch.from_numpy(array) for name, array in case.arrays.items()}
    vision = model.model.get_image_features(**images, return_dict=True)
    features = [vision.pooler_output, *(getattr(vision, "deepstack_features", None) or ())]
    joined = [part if isinstance(part, torch.Tensor) else torch.cat(list(part)) for part in features]
    ids = torch.from_numpy(case.token_ids)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == tokens["image"]).int(),
        **images,
    }
    stop, pad = tokens["eos"], tokens["pad"]
    result = generate_greedily(model, inputs, stop=stop, pad=pad, max_new_tokens=case.new_tokens, output_logits=True)
    logits = np.concatenate([row.float().numpy() for row in result.logits])
    return Sample(case, tuple(part.numpy() for part in joined), logits, result.sequences[0, ids.shape[1] :].tolist())


@torch.no_grad()
def apply_weights(model: nn.Module, weights: WeightSet) -> None:
    """Put a weight set's dequantized layers and its overrides into a loaded model.

    A head that shares the embedding's weight gets one of its own.
    """
    for name in weights.names:
        _assign(model, name, weights.dequantized(name))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in weights.overrides:
        parameters[name].copy_(torch.from_numpy(weights.override(name)))


@torch.no_grad()
def apply_rounding(model: nn.Module, decoder: DecoderWeights) -> None:
    """Put the layers that an export rounds to nearest into a loaded model."""
    for linear in decoder.rounded():
        _assign(model, linear.parts[0].name, linear.blocks().dequantize())


def _assign(model: nn.Module, name: str, values: Float) -> None:
    layer = model.get_submodule(name)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    assert tensor.shape == layer.get_parameter("weight").shape
    if name == HEAD:  # it may be the embedding's own tensor
        layer.weight = nn.Parameter(tensor, requires_grad=False)
    else:
        layer.get_parameter("weight").copy_(tensor)
