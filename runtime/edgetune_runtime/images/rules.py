"""The preprocessing rules by name: that of a family's checkpoint, and that which a bundle carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.images.anyres import AnyResolution
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.config import Normalise
from edgetune_runtime.images.naflex import NaFlex
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.images.split import SplitTiles
from edgetune_runtime.images.square import PaddedSquare
from edgetune_runtime.images.tiles import DynamicTiles

_Rule = ImageSpec | DynamicTiles | SplitTiles | PaddedSquare | AnyResolution | NaFlex
_RULES: Mapping[str, type[_Rule]] = {
    rule.rule: rule for rule in (ImageSpec, DynamicTiles, SplitTiles, PaddedSquare, AnyResolution, NaFlex)
}


class Resizing(Protocol):
    """What is asked of a family here; a bundle's rule is read without one."""

    @property
    def resize(self) -> str:
        """The name of its rule."""

    @property
    def title(self) -> str:
        """The name that people use."""


def open_preprocessing(folder: Path, family: Resizing) -> Preprocessing:
    """Return the image preprocessing of a checkpoint of this family, read from the checkpoint's own files.

    Raises:
        InputError: a file or setting is missing, settings contradict each other, or there is no rule for the family.
    """
    rule = _RULES.get(family.resize)
    if rule is None:
        raise InputError(f"{folder}: the image preprocessing of {family.title} is not known")
    return rule.from_checkpoint(folder)


def bounded(spec: Preprocessing, max_pixels: int, folder: Path) -> ImageSpec:
    """Return a rule with another largest area of the resized picture, in pixels.

    Args:
        spec: the rule.
        max_pixels: the area.
        folder: whose rule it is, for the message.

    Raises:
        InputError: the rule has no such limit, or the area is too little for a picture.
    """
    if not isinstance(spec, ImageSpec):
        raise InputError(
            f"{folder}: max_pixels is a limit of smart resize, and its pictures are prepared by {spec.rule!r}"
        )
    return spec.bounded(max_pixels=max_pixels)


def rule_from_dict(values: Any) -> Preprocessing:
    """Return the rule that `Preprocessing.to_dict` wrote down.

    Raises:
        InputError: the rule is unknown, a field is missing or unknown, or has a value that it cannot have.
    """
    name = values.get("rule") if isinstance(values, Mapping) else None
    rule = _RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise InputError(f"rule must be one of {', '.join(_RULES)}, got {name!r}")
    told = {key: value for key, value in values.items() if key != "rule"}
    return rule(**_arguments(rule, told))


def _arguments(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values as the arguments of a rule or of a part of it."""
    known = [field for field in fields(kind) if field.default is MISSING]
    names = {field.name for field in known}
    if set(values) != names:
        wrong = sorted(names ^ set(values))
        raise InputError(f"{wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
    return {field.name: _value(field.name, field.type, values[field.name]) for field in known}


def _value(name: str, kind: Any, value: Any) -> Any:
    if kind == "Normalise":
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be an object, got {value!r}")
        return Normalise(**_arguments(Normalise, value))
    if kind == "Image.Resampling":
        if type(value) is not int or value not in set(Image.Resampling):
            raise InputError(f"{name} {value!r} is no filter of Pillow")
        return Image.Resampling(value)
    if str(kind).startswith("tuple"):
        if not isinstance(value, list):
            raise InputError(f"{name} must be a list, got {value!r}")
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value
