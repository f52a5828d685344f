"""One question about one picture as the inputs of a checkpoint under torch, in two ways.

Families that resize smartly are read by transformers' own processor and chat template: a bundle is compared with them,
so a mistake in our preprocessing or prompt has to show as a difference and must not cancel out. The others go through
the preprocessing that training uses, which keeps whole pictures where a checkpoint's own processor would cut them;
tests compare it with transformers' processors bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from edgetune_core.conversation import token_id
from edgetune_runtime.codec import grammar
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family
from edgetune_runtime.images.rules import open_preprocessing
from edgetune_runtime.tokens import TextTokenizer


class Inputs(Protocol):
    """Makes a model's keyword arguments."""

    def __call__(self, image: Image.Image, text: str) -> tuple[dict[str, torch.Tensor], Geometry]:
        """Return the arguments of `generate` for the user's words about an upright RGB image, and its geometry."""


class LibraryInputs:
    """What transformers makes of a question; `limits` replaces the checkpoint's own areas of the resized picture."""

    def __init__(self, checkpoint: Path, family: Family, limits: tuple[int, int] | None = None) -> None:
        other: dict[str, Any] = {}
        if limits is not None:  # the older names win over the size where the checkpoint's file has them
            low, high = limits
            other = {"size": {"shortest_edge": low, "longest_edge": high}, "min_pixels": low, "max_pixels": high}
        # Parts of transformers are not typed.
        self._processor: Any = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **other)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self._image_token = family.chat.image_token

    def __call__(self, image: Image.Image, text: str) -> tuple[dict[str, torch.Tensor], Geometry]:
        """See `Inputs`.

        Raises:
            InputError: the checkpoint has no chat template.
        """
        pixels = self._processor(images=image, return_tensors="pt")
        grid = pixels["image_grid_thw"]  # [1, 3]: frames, patch rows, patch columns
        prompt = self._prompt(text, int(grid.prod()) // self._processor.merge_size**2)
        ids = self._tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]  # [1, S]
        image_id = self._tokenizer.convert_tokens_to_ids(self._image_token)
        rows, columns = (int(side) * self._processor.patch_size for side in grid[0, 1:])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == image_id).long(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": grid,
        }, Geometry(image.width, image.height, columns, rows)

    def _prompt(self, text: str, image_tokens: int) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        if not self._tokenizer.chat_template:
            raise InputError("the checkpoint has no chat template", hint="copy chat_template.jinja from its base model")
        prompt: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return prompt.replace(self._image_token, self._image_token * image_tokens)


class OwnInputs:
    """What training makes of a question.

    Raises:
        InputError: a setting of the preprocessing is missing, or the tokenizer lacks a token of the family.
    """

    def __init__(self, checkpoint: Path, family: Family) -> None:
        self._family = family
        self._spec = open_preprocessing(checkpoint, family)
        self._tokenizer = TextTokenizer(checkpoint / "tokenizer.json")
        self._image_id = token_id(self._tokenizer, family.chat.image_token)

    def __call__(self, image: Image.Image, text: str) -> tuple[dict[str, torch.Tensor], Geometry]:
        """See `Inputs`.

        Raises:
            InputError: the text spells a control token.
        """
        plan = self._spec.plan(*image.size)
        row = self._tokenizer.prompt(
            self._family.chat,
            text,
            image_tokens=plan.pieces,
            image_token=self._image_id,
            allowed=grammar.tags(self._family.box_format.style),
        )
        ids = torch.from_numpy(row)[None]  # [1, S]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._spec.typed_tokens:
            inputs["mm_token_type_ids"] = (ids == self._image_id).long()
        arrays = self._spec.join([self._spec.arrays(image)])
        return inputs | {name: torch.from_numpy(array) for name, array in arrays.items()}, plan.geometry
