"""What transformers' own tokenizer, chat template and image processor make of a record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer


@dataclass(frozen=True)
class Reference:
    """One conversation: the model's inputs without batch or padding, and how many of them are the prompt."""

    inputs: dict[str, torch.Tensor]
    prompt_length: int

    @property
    def answer_ids(self) -> list[int]:
        """Tokens of the answer and of the token that ends it."""
        return self.inputs["input_ids"][0, self.prompt_length :].tolist()

    def prompt(self) -> dict[str, torch.Tensor]:
        """Return the inputs up to where the answer starts."""
        texts = ("input_ids", "attention_mask", "mm_token_type_ids")
        return self.inputs | {name: self.inputs[name][:, : self.prompt_length] for name in texts}


def conversation(checkpoint: Path, image: Path, text: str, answer: str) -> Reference:
    """Return one user turn with an image and the answer to it, through transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    processor: Any = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    pixels = processor(images=Image.open(image).convert("RGB"), return_tensors="pt")
    tokens = int(pixels["image_grid_thw"].prod()) // processor.merge_size**2
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    turns = [user, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]

    def ids(messages: list[dict[str, Any]], *, prompt: bool) -> list[int]:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        expanded = rendered.replace("<|image_pad|>", "<|image_pad|>" * tokens)
        return list(tokenizer(expanded, add_special_tokens=False)["input_ids"])

    whole, prompt = ids(turns, prompt=False), ids([user], prompt=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    whole = whole[: len(whole) - whole[::-1].index(end)]  # the template's line break after the last turn
    assert whole[: len(prompt)] == prompt
    input_ids = torch.tensor([whole])
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == image_id).long(),
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": pixels["image_grid_thw"],
    }
    return Reference(inputs, len(prompt))
