"""What a checkpoint of random weights is written from: the sizes of a published model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        family: our name of its family, which is its model type.
        text: values of its text config.
        vision: values of its vision config that are not transformers' defaults.
        tied: whether the output head is the table of embeddings.
        preprocessor: its preprocessor_config.json.
        more: further values of its config.
        marks: control tokens that its tokenizer has beside those of its family's facts.
        processor: its processor_config.json, if it has one.
    """

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool
    preprocessor: dict[str, Any] = field(repr=False)
    more: dict[str, Any] = field(default_factory=dict, repr=False)
    marks: tuple[str, ...] = ()
    processor: dict[str, Any] = field(default_factory=dict, repr=False)
