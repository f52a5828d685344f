"""The model families that are known, by name: ours, and those of installed packages."""

from __future__ import annotations

from collections.abc import Collection

from edgetune_runtime.errors import InputError
from edgetune_runtime.families import (
    idefics3,
    internvl,
    lfm2_vl,
    llava,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    qwen_vl,
    smolvlm,
)
from edgetune_runtime.families.base import Chat, Family, Modules
from edgetune_runtime.plugins import Plugins

__all__ = ["FAMILIES", "Chat", "Family", "Modules", "all_families", "family_of", "get_family"]

_QWEN = (qwen3_vl, qwen3_5, qwen2_5_vl, qwen2_vl, qwen_vl)
_MODULES = (*_QWEN, internvl, llava, llava_onevision, smolvlm, idefics3, lfm2_vl)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


OTHERS: Plugins[Family] = Plugins(
    "edgetune.families",
    "model family",
    "an edgetune_runtime.families.Family",
    lambda found: isinstance(found, Family),
    built_in=FAMILIES,
    named=True,
)
"""Families that installed packages add; they are asked about what none of ours is."""


def all_families() -> list[Family]:
    """Return ours and those of other packages.

    Raises:
        InputError: a package is broken, or its family has the name or a `model_type` of another one.
        MissingDependency: a package, or something that it needs, cannot be imported.
    """
    families = list(FAMILIES.values())
    for family in OTHERS.load_all():
        theirs = {kind: known for known in families for kind in known.model_types}
        for kind in family.model_types:
            if kind in theirs:
                raise InputError(
                    f"the model family {family.name!r} of {OTHERS.package(family.name)} claims model type {kind!r}, "
                    f"which is that of {theirs[kind].name!r}",
                    hint="uninstall the package, or ask its authors for a model type of its own",
                )
        families.append(family)
    return families


def get_family(name: str) -> Family:
    """Return the family with this name or with this `model_type` of a config.json.

    Raises:
        InputError: the name is unknown; the hint has the nearest known one, or all of them. Or as `all_families`.
    """
    for families in (FAMILIES.values, all_families):  # ours first: what is known searches no packages
        known = list(families())
        found = [one for one in known if one.name == name] + [one for one in known if name in one.model_types]
        if found:
            return found[0]
    raise OTHERS.unknown(name)


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
