"""Move factors between the layers of a block without changing what it computes.

A linear may read its inputs divided by a factor a channel, if its columns are multiplied by it and whatever makes those
inputs makes them smaller: the gain of a norm, or the rows of the linear before. AWQ (Lin et al. 2023, arXiv 2306.00978)
picks the factors so that rounding hurts the channels that matter less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetune_runtime.families.base import Modules


@dataclass(frozen=True)
class Seam:
    """Where factors can move: from `source`, a norm or a linear, to the linears that read what it makes.

    Names are relative to the block. What a norm's weight counts from is its offset (`Modules.norm_offset`).
    """

    source: str
    readers: tuple[str, ...]
    offset: float = 0.0


def seams(modules: Modules, block: nn.Module) -> Iterator[Seam]:
    """Yield the seams of a block.

    A linear whose output is read more than once, as the values of grouped-query attention are, has other sizes than
    its reader and is none. Norms inside the attention, on queries or keys, are not touched: they undo factors.
    """
    for norm, readers in modules.norm_linears.items():
        yield Seam(norm, tuple(readers), modules.norm_offset)
    for source, reader in modules.linear_pairs.items():
        if len(_weight(block, source)) == _weight(block, reader).shape[1]:
            yield Seam(source, (reader,))


@torch.no_grad()
def fold(block: nn.Module, seam: Seam, factors: Tensor) -> list[str]:
    """Divide what a seam's source makes by factors, and multiply its readers' columns by them, in place.

    Args:
        block: the decoder block.
        seam: where.
        factors: positive float32, one for each channel between.

    Returns:
        The parameters of the source that changed and are no linear's weight, relative to the block.
    """
    for name in seam.readers:
        _scale(_weight(block, name), factors)
    source = block.get_submodule(seam.source)
    changed = []
    for name, parameter in source.named_parameters(recurse=False):
        _scale(parameter.data, 1 / (factors[:, None] if parameter.ndim == 2 else factors), seam.offset)
        if parameter.ndim == 1:
            changed.append(f"{seam.source}.{name}")
    return changed


def _weight(block: nn.Module, name: str) -> Tensor:
    return block.get_submodule(name).get_parameter("weight").data


def _scale(values: Tensor, factors: Tensor, offset: float = 0.0) -> None:
    """Multiply values and their offset in float32, then round once to the values' own dtype."""
    values.copy_((values.float() + offset) * factors - offset)
