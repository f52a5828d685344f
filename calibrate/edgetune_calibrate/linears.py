"""The linears of a decoder as calibration deals with them: which share an input, what a solver is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgetune_calibrate.moments import Moments
from edgetune_calibrate.solve import LinearGroup, SolveSettings
from edgetune_calibrate.solve.rows import row_parts, values_of
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockWeight


def input_groups(modules: Modules) -> list[tuple[str, ...]]:
    """Return the linears of a block in the order they run, those that read the same norm's output together.

    Args:
        modules: names of the block, see `edgetune_core.blocks.of_block`.
    """
    shared = {name: tuple(names) for names in modules.norm_linears.values() for name in names}
    return list(dict.fromkeys(shared.get(name, (name,)) for name in modules.linears))


def visible(batch: Mapping[str, Any]) -> Tensor:
    """Return float32 [B, S]: 1 for the tokens of a batch, 0 for its padding."""
    mask = batch.get("attention_mask")
    return torch.ones(batch["input_ids"].shape) if mask is None else mask.float()


def group_of(linears: Mapping[str, nn.Module], moments: Moments) -> LinearGroup:
    """Return linears of one input, by their full names, as the solver takes them."""
    hessian, cross = moments.means()
    weights = {name: linear.get_parameter("weight").detach().float() for name, linear in linears.items()}
    return LinearGroup(weights, hessian, moments.tokens, cross)


def put_weight(linear: nn.Module, weight: BlockWeight) -> None:
    """Give a linear the values that a quantized weight stands for."""
    values = linear.get_parameter("weight").data
    for part in row_parts(*values.shape):
        values[part].copy_(values_of(weight, values.device, part))


def untie(head: nn.Module) -> None:
    """Give a head a weight of its own: the embedding that it may be tied to stays as it is."""
    head.weight = nn.Parameter(head.get_parameter("weight").detach().clone(), requires_grad=False)


def check_columns(name: str, linear: nn.Module, settings: SolveSettings) -> None:
    """Raise InputError where the group size does not divide a linear's inputs."""
    columns = linear.get_parameter("weight").shape[1]
    if columns % settings.group_size:
        fits = [size for size in (128, 64, 32, 16) if size < settings.group_size and columns % size == 0]
        raise InputError(
            f"{name}: {columns} input columns are not a multiple of the group size {settings.group_size}",
            hint=f"use --group-size {fits[0]}" if fits else None,
        )
