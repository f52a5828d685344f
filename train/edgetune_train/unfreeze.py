"""Parts of the vision tower that are trained whole, beside the adapter: its last blocks and the merger."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules

_LAST = re.compile(r"vision\.last:([1-9]\d*)")


def resolve_unfreeze(model: nn.Module, modules: Modules, parts: Sequence[str]) -> list[str]:
    """Return the dotted names of the modules that `parts` mean.

    Args:
        model: the transformers model.
        modules: the family's module names.
        parts: "vision.last:N", the last N blocks of the vision tower, and "merger", what turns its output into image
            tokens.

    Raises:
        InputError: another part, more blocks than there are, or a family whose tower cannot be trained in part.
    """
    found = []
    for part in parts:
        match = _LAST.fullmatch(part)
        if match is None and part != "merger":
            raise InputError(
                f"--unfreeze {part}: no such part", hint="give vision.last:N, merger, or both with a comma"
            )
        names = modules.mergers if match is None else (modules.vision_blocks,)
        if not all(names) or not names:
            raise InputError(f"--unfreeze {part}: this family's vision tower cannot be trained in part")
        layers = [layer for name in names for layer in _flat(model, name)]
        count = len(layers) if match is None else int(match[1])
        if count > len(layers):
            raise InputError(f"--unfreeze {part}: the vision tower has {len(layers)} blocks")
        found += layers[-count:]
    return found


def check_apart(adapted: Sequence[str], whole: Sequence[str]) -> None:
    """Refuse layers that would be adapted and trained whole.

    Raises:
        InputError: the first such layer.
    """
    for name in adapted:
        if any(name == module or name.startswith(module + ".") for module in whole):
            raise InputError(
                f"{name} would be adapted by LoRA and trained whole",
                hint="leave --unfreeze away, or choose --target layers outside of it",
            )


def to_float32(model: nn.Module) -> None:
    """Hold what is trained in float32: small updates to bfloat16 weights are lost in rounding."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def _flat(model: nn.Module, name: str) -> list[str]:
    """Return the names of a list's modules, or the name itself of any other module."""
    module = model.get_submodule(name)
    return [f"{name}.{i}" for i in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
