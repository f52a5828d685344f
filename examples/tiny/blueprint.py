"""How a checkpoint reads a picture and what is asked about it: everything but its network.

A sequence of the training is `opening`, one picture's image tokens, `closing`, and then several queries of `SLOT`
tokens, which see the picture but not each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import scenes
from edgetune_runtime.families import all_families
from edgetune_runtime.families.base import Family
from edgetune_runtime.images.base import ImagePlan, Preprocessing
from edgetune_runtime.images.rules import open_preprocessing

SLOTS, SLOT = 4, 72  # queries to an image, and tokens of each


@dataclass(frozen=True)
class Blueprint:
    """A checkpoint without its weights.

    Attributes:
        config: its config.json.
        family: the facts of its family.
        spec: how it reads pictures.
        tokenizer: its tokenizer.
    """

    config: dict[str, Any]
    family: Family
    spec: Preprocessing
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path) -> Blueprint:
        """Read config, preprocessor and tokenizer of a checkpoint folder."""
        config = json.loads((folder / "config.json").read_text())
        family = next(family for family in all_families() if config["model_type"] in family.model_types)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(config, family, open_preprocessing(folder, family), tokenizer)

    def plan(self, canvas: int) -> ImagePlan:
        """Size and tokens of a picture with the size of this canvas."""
        return self.spec.plan(*scenes.CANVASES[canvas])

    @cached_property
    def opening(self) -> list[int]:
        """Tokens before the image tokens."""
        chat = self.family.chat
        return self._ids(chat.prefix + chat.before_image + self._around[0])

    @cached_property
    def closing(self) -> int:
        """The token after the image tokens, which all queries share."""
        return self._after[0]

    @cached_property
    def lead(self) -> list[int]:
        """What stands between that token and a question, and is a part of every query."""
        return self._after[1:]

    @cached_property
    def image(self) -> int:
        """The token that stands for the image."""
        (token,) = self._ids(self.family.special_tokens["image"])
        return token

    @cached_property
    def end(self) -> int:
        """The token that ends an answer."""
        (token,) = self._ids(self.family.chat.end)
        return token

    @property
    def _after(self) -> list[int]:
        return self._ids(self._around[1] + self.family.chat.after_image)

    @property
    def _around(self) -> tuple[str, str]:
        """The texts that the picture rule writes before and after the image tokens."""
        pieces = self.plan(0).pieces
        at = next(index for index, piece in enumerate(pieces) if isinstance(piece, int))
        before, after = pieces[:at], pieces[at + 1 :]
        return "".join(map(str, before)), "".join(map(str, after))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
