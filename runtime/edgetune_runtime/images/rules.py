"""Which rule a family's pictures go through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Family, Resize
from edgetune_runtime.images.anyres import AnyResolution
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.images.split import SplitTiles
from edgetune_runtime.images.square import PaddedSquare
from edgetune_runtime.images.tiles import DynamicTiles

_RULES: dict[Resize, Callable[[Path], Preprocessing]] = {
    "smart": ImageSpec.from_checkpoint,
    "tiles": DynamicTiles.from_checkpoint,
    "split": SplitTiles.from_checkpoint,
    "pad_square": PaddedSquare.from_checkpoint,
    "anyres": AnyResolution.from_checkpoint,
}


def open_preprocessing(folder: Path, family: Family) -> Preprocessing:
    """Return the image preprocessing of a checkpoint of this family, read from the checkpoint's own files.

    Raises:
        InputError: a file or setting is missing, settings contradict each other, or there is no rule for the family.
    """
    rule = _RULES.get(family.resize)
    if rule is None:
        raise InputError(f"{folder}: the image preprocessing of {family.title} is not known")
    return rule(folder)
