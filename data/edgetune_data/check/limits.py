"""From where on something counts as wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgetune_runtime.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Thresholds of the check, with their units.

    Attributes:
        min_box: image tokens; a box of less area, after the model's own resize, is tiny. A quarter is half a token a
            side.
        near: bits of 64; pictures whose perceptual hashes differ in at most this many are near-duplicates.
        max_blur: 0-1; a picture is blurred from this perceptual blur on (0 is sharp).
        min_bright: 0-1; a picture whose brightest hundredth is below this brightness is dark.
        max_bright: 0-1; a picture whose darkest twentieth is above this brightness is bright.
        min_entropy: bits; a picture with less entropy of its grey levels holds hardly anything.
        max_enlarge: a picture whose sides the model has to enlarge more than this many times is small for it.
        same_box: IoU; boxes of one phrase that overlap less are different boxes.
        rare: a label with less than this share of the boxes of the most frequent one is rare.
        frame_boxes: fewer boxes than this say nothing about the frame they are in.
        vague: more regular expressions (case-insensitive, whole phrase) for phrases that name nothing.
    """

    min_box: float = 0.25
    near: int = 6
    max_blur: float = 0.6
    min_bright: float = 0.32
    max_bright: float = 0.95
    min_entropy: float = 3.0
    max_enlarge: float = 2.0
    same_box: float = 0.5
    rare: float = 0.05
    frame_boxes: int = 10
    vague: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.vague:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"--vague {pattern!r}: not a regular expression: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the thresholds as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
