"""Rounding to nearest of a weight in runs of rows: on all cores of the CPU, or on a GPU with the same codes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, Float, round_to_nearest


def round_rows(rows: Sequence[Tensor], fmt: BlockFormat, device: torch.device) -> list[BlockWeight]:
    """Round runs of rows [N, K] of a weight, which do not depend on each other."""
    if device.type != "cpu":
        return [round_with_torch(part, fmt, device) for part in rows]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(_round, fmt), rows))


def _round(fmt: BlockFormat, rows: Tensor) -> BlockWeight:
    return round_to_nearest(to_numpy(rows), fmt)


def round_with_torch(weight: Tensor, fmt: BlockFormat, device: torch.device) -> BlockWeight:
    """What `edgetune_runtime.quant.blocks.round_to_nearest` makes of a weight [N, K], computed on a device."""
    # Divisors are tensors on the device: by a number, CUDA multiplies with its reciprocal, which rounds otherwise.
    top, half, one = (torch.tensor(float(n), device=device) for n in ((1 << fmt.bits) - 1, 1 << (fmt.bits - 1), 1))
    columns = weight.shape[1]
    values = weight.detach().to(device, torch.float32)
    blocks = pad(values, (0, -columns % fmt.block)).unflatten(1, (-1, fmt.block))
    if fmt.symmetric:
        scales = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / -half
        zero = half.expand_as(scales)
    else:
        low, high = blocks.amin(2, keepdim=True).clamp(max=0), blocks.amax(2, keepdim=True).clamp(min=0)
        scales = (high - low) / top
        zero = (-low / torch.where(scales == 0, one, scales)).round().clamp(0, top)
    safe = torch.where(scales == 0, one, scales)
    codes = ((blocks / safe).round_().add_(zero)).clamp_(0, top)
    return BlockWeight(
        codes=codes.to(torch.uint8).cpu().numpy(),
        scales=safe[:, :, 0].cpu().numpy(),
        zero_points=None if fmt.symmetric else zero[:, :, 0].to(torch.uint8).cpu().numpy(),
        bits=fmt.bits,
        columns=columns,
    )


def to_numpy(tensor: Tensor) -> Float:
    """Float32 copy of a tensor on the CPU."""
    array: Float = tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array
