"""Rows of a weight never interact: what is large, such as a language model head, is dealt with some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from edgetune_runtime.quant.blocks import BlockWeight

PART = 1 << 26
"""Most entries of a part, of which several copies in float32 fit in memory."""
CACHED = 1 << 17
"""Most entries of a part of which copies fit in the cache of a CPU."""


def row_parts(rows: int, columns: int, entries: int = PART) -> Iterator[slice]:
    """Cut the rows of a weight [rows, columns] into parts of so many entries at most, or of one row."""
    most = max(1, entries // columns)
    for start in range(0, rows, most):
        yield slice(start, min(start + most, rows))


def stacked(weights: Sequence[Tensor], rows: slice) -> Tensor:
    """Return some rows, as float32, of weights [N, K] put one below the other."""
    starts = accumulate((len(weight) for weight in weights), initial=0)
    cut = [
        weight[max(0, rows.start - start) : max(0, rows.stop - start)]
        for weight, start in zip(weights, starts, strict=False)
    ]
    return torch.cat([part.float() for part in cut if len(part)])


def values_of(weight: BlockWeight, device: torch.device | str, rows: slice = slice(None)) -> Tensor:
    """Return the float32 [rows, K] that some rows of a quantized weight stand for."""
    codes, scales = (torch.from_numpy(each[rows]).to(device) for each in (weight.codes, weight.scales))
    zeros = torch.from_numpy(weight.all_zero_points()[rows]).to(device)
    return ((codes.float() - zeros.float()[..., None]) * scales[..., None]).flatten(1)[:, : weight.columns]
