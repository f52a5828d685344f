"""The model families that are known, by name."""

from __future__ import annotations

import difflib

from edgetune_runtime.errors import InputError
from edgetune_runtime.families import internvl, llava, qwen2_5_vl, qwen2_vl, qwen3_vl, qwen_vl, smolvlm
from edgetune_runtime.families.base import Chat, Family, Modules

__all__ = ["FAMILIES", "Chat", "Family", "Modules", "get_family"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (qwen3_vl, qwen2_5_vl, qwen2_vl, qwen_vl, internvl, llava, smolvlm)
}


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
