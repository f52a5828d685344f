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


def greedy_text(folder: Path, image: Image.Image | None, text: str, *, max_new_tokens: int, eos: list[int]) -> str:
    """Return the answer of `generate` to a question about an image, or about none."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    pixels = None if image is None else preprocess(image, ImageSpec.from_checkpoint(folder))
    ids = torch.tensor([tokenizer(render(tokenizer, text, 0 if pixels is None else pixels.image_tokens)).input_ids])
    visual = {}
    if pixels is not None:
        visual = {
            "pixel_values": torch.from_numpy(pixels.pixel_values),
            "image_grid_thw": torch.from_numpy(pixels.grid_thw),
            "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        }
    search = _transformers.GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=0
    )
    tokens = model.generate(input_ids=ids, generation_config=search, **visual)
    answer: str = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    return answer.strip()
