"""The model families that are known, by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from edgetune_runtime.errors import InputError
from edgetune_runtime.families import (
    idefics3,
    internvl,
    llava,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    qwen_vl,
    smolvlm,
)
from edgetune_runtime.families.base import Chat, Family, Modules

__all__ = ["FAMILIES", "Chat", "Family", "Modules", "family_of", "get_family"]

_MODULES = (qwen3_vl, qwen2_5_vl, qwen2_vl, qwen_vl, internvl, llava, llava_onevision, smolvlm, idefics3)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def get_family(name: str) -> Family:
    """Return the family with this name or with this `model_type` of a config.json.

    Raises:
        InputError: the name is unknown; the hint has the nearest known one, or all of them.
    """
    by_name = {model_type: family for family in FAMILIES.values() for model_type in family.model_types} | FAMILIES
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known families: {', '.join(FAMILIES)}"
    raise InputError(f"unknown model family {name!r}", hint=hint)


def family_of(model_type: str, tokens: Collection[str]) -> Family:
    """Return the family of a checkpoint, which its tokenizer may have to tell: families may share a model_type.

    Args:
        model_type: of its config.json.
        tokens: the control tokens of its tokenizer.

    Raises:
        InputError: the model type is unknown, as in `get_family`.
    """
    candidates = [family for family in FAMILIES.values() if model_type in family.model_types]
    marked = [family for family in candidates if family.marker and family.marker in tokens]
    plain = [family for family in candidates if not family.marker]
    return (marked or plain or [get_family(model_type)])[0]
