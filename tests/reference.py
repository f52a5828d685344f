"""What transformers makes of a checkpoint, in float32 and greedily: the reference of exports and sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from edgetune_runtime.images.smart import ImageSpec, preprocess

_transformers: Any = transformers  # much of it is untyped


def load_model(folder: Path) -> Any:
    """Return the model for conditional generation."""
    return _transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


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
