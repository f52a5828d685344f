"""Which of a family's linears each block of a decoder has."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules


def of_block(modules: Modules, block: nn.Module) -> Modules:
    """Return the names that one block has: blocks may be of several kinds."""
    there = {name for name, _ in block.named_modules()}
    return modules.within(there.__contains__)


def of_blocks(modules: Modules, blocks: Iterable[nn.Module]) -> list[Modules]:
    """Return the names that each block has.

    Raises:
        InputError: no block has one of the family's linears: it would be left out and nobody would know.
    """
    each = [of_block(modules, block) for block in blocks]
    found = {name for names in each for name in names.linears}
    for name in modules.linears:
        if name not in found:
            raise InputError(f"no block of the decoder has {name}, as models of its family have")
    return each


def final_norm(modules: Modules, model: nn.Module) -> nn.Module:
    """Return the norm behind the last block of the decoder."""
    return model.get_submodule(f"{modules.text_root}.{modules.called('norm')}")
