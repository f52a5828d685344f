"""The linear layers of a decoder as products of its graph: what is stacked in each, its weight and order of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetune_core.streaming import Values
from edgetune_core.weightset import Order, WeightSet
from edgetune_export.decoder.rounding import round_rows, to_numpy
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, Float, in_nibbles

_ROWS = 2048
"""Rows of a weight that are rounded at a time, on one thread where the CPU does it."""


@dataclass(frozen=True)
class Part:
    """One linear layer of the model, by its name in transformers, and the weight set that may hold it."""

    name: str
    module: nn.Linear
    weights: WeightSet | None
    values: Values

    @property
    def rows(self) -> int:
        """N, the output size."""
        return int(self.module.weight.shape[0])

    @property
    def format(self) -> BlockFormat | None:
        """How the weight set quantizes it, None when it does not."""
        return self.weights.format(self.name) if self.weights is not None and self.name in self.weights else None

    def dense(self) -> Float:
        """Float32 weight [N, K] of the checkpoint."""
        return to_numpy(self.values(self.module.weight))

    def rows_of(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Some rows of the checkpoint's weight."""
        return self.values(self.module.weight)[torch.from_numpy(rows)]

    def dense_rows(self, rows: NDArray[np.int64]) -> Float:
        """Some rows of `dense`."""
        return to_numpy(self.rows_of(rows))

    def split(self) -> Sequence[torch.Tensor]:
        """The weight of the checkpoint as runs of rows, which are read when they are used."""
        weight = self.values(self.module.weight)
        return [weight[start : start + _ROWS] for start in range(0, len(weight), _ROWS)]

    def blocks(self) -> BlockWeight:
        """The codes of the weight set."""
        assert self.weights is not None
        weight = self.weights.weight(self.name)
        if (len(weight.codes), weight.columns) != tuple(self.module.weight.shape):
            raise InputError(
                f"{self.weights.folder}: {self.name} is {[len(weight.codes), weight.columns]} there and "
                f"{list(self.module.weight.shape)} in the checkpoint",
                hint="export the checkpoint that the set was calibrated from",
            )
        return in_nibbles(weight)

    @property
    def order(self) -> Order | None:
        """Which input each column of `blocks` reads, None for the model's order."""
        return self.weights.order(self.name) if self.format is not None and self.weights is not None else None

    def bias(self) -> Float:
        """Float32 bias [N]; zero where the layer has none."""
        if self.module.bias is None:
            return np.zeros(self.module.weight.shape[0], np.float32)
        return parameter(f"{self.name}.bias", self.module.bias, self.weights, self.values)


class Linear:
    """One product of the graph: which layers are stacked in its weight [N, K], and the format it is written in.

    Args:
        name: of the product in the graph.
        parts: layers that read the same input.
        fallback: format of layers that the weight set does not hold, None for dense.
        device: where weights are rounded to nearest.

    Raises:
        InputError: the weight set has the parts in different formats.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        fallback: BlockFormat | None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        self.name, self._device = name, device
        self.parts = tuple(parts)
        formats = {part.format for part in parts}
        if len(formats) > 1:
            raise InputError(
                f"the weight set has {', '.join(part.name for part in parts)} in different formats, "
                "but they are one product in the graph",
                hint="calibrate again: layers that read the same input need the same bits and group size",
            )
        self.calibrated = None not in formats
        own = formats.pop()
        if own is not None and own.bits == 3:
            own = BlockFormat(4, own.block, own.symmetric)
        self.format = own or fallback

    @property
    def order(self) -> Order | None:
        """Which input each column reads, int64 [K]; None for the model's order.

        Raises:
            InputError: the parts read their inputs in different orders.
        """
        first, *others = (part.order for part in self.parts)
        own = range(self.columns) if first is None else first
        if any(not np.array_equal(range(self.columns) if one is None else one, own) for one in others):
            raise InputError(
                f"{', '.join(part.name for part in self.parts)} have their inputs in different orders (desc_act), but "
                "they are one product in the graph",
                hint="quantize again with desc_act false, or calibrate the original: edgetune calibrate",
            )
        return first

    @property
    def rows(self) -> int:
        """N, the output size."""
        return sum(part.rows for part in self.parts)

    @property
    def columns(self) -> int:
        """K, the input size."""
        return int(self.parts[0].module.weight.shape[1])

    def dense(self) -> Float:
        """Float32 weight [N, K]."""
        return np.concatenate([part.dense() for part in self.parts])

    def blocks(self) -> BlockWeight:
        """The weight in its format, of 4 or 8 bits: the set's codes, or rounded to nearest."""
        assert self.format is not None
        if self.calibrated:
            weights = [part.blocks() for part in self.parts]
        else:
            weights = round_rows([rows for part in self.parts for rows in part.split()], self.format, self._device)
        zeros = [weight.zero_points for weight in weights if weight.zero_points is not None]
        return BlockWeight(
            codes=np.concatenate([weight.codes for weight in weights]),
            scales=np.concatenate([weight.scales for weight in weights]),
            zero_points=np.concatenate(zeros) if zeros else None,
            bits=self.format.bits,
            columns=self.columns,
        )

    def bias(self) -> Float | None:
        """Float32 bias [N], zero for a part that has none, or None when no part has one."""
        if all(part.module.bias is None for part in self.parts):
            return None
        return np.concatenate([part.bias() for part in self.parts])


class Rows(Linear):
    """Some rows of a product's weight, as a product of its own.

    Args:
        name: of the product in the graph.
        linear: whose rows they are.
        rows: their numbers, int64 [n].
    """

    def __init__(self, name: str, linear: Linear, rows: Sequence[int]) -> None:
        super().__init__(name, linear.parts, linear.format, linear._device)
        self._whole, self._rows = linear, np.array(rows)
        self.calibrated = False  # it is written where it stands, also where its source's weight is in a checkpoint

    @property
    def rows(self) -> int:
        """N, the output size."""
        return len(self._rows)

    def dense(self) -> Float:
        """Float32 weight [N, K]."""
        (part,) = self.parts
        return part.dense_rows(self._rows)

    def blocks(self) -> BlockWeight:
        """The rows in the format of the whole, each with the scales that it has there."""
        (part,) = self.parts
        if not self._whole.calibrated:
            assert self.format is not None
            return round_rows([part.rows_of(self._rows)], self.format, self._device)[0]
        weight = part.blocks()
        zeros = None if weight.zero_points is None else weight.zero_points[self._rows]
        return replace(weight, codes=weight.codes[self._rows], scales=weight.scales[self._rows], zero_points=zeros)

    def bias(self) -> Float | None:
        """Float32 bias [N], or None."""
        whole = self._whole.bias()
        return None if whole is None else whole[self._rows]


def shared(linear: Linear, uses: int) -> Callable[[], BlockWeight]:
    """Return what reads a layer's blocks once for all the tensors that are made of them.

    A graph's tensors are computed one by one while it is written: codes, scales and zero points in turn.

    Args:
        linear: the layer, in a block format.
        uses: how many tensors are made of its blocks; after the last one they are dropped.
    """
    kept: list[BlockWeight] = []
    left = uses

    def blocks() -> BlockWeight:
        nonlocal left
        if not kept:
            kept.append(linear.blocks())
            left = uses
        left -= 1
        return kept[0] if left else kept.pop()

    return blocks


def parameter(name: str, tensor: torch.Tensor, weights: WeightSet | None, values: Values) -> Float:
    """A parameter as float32: the weight set's where it replaces it, else the checkpoint's."""
    if weights is None or name not in weights.overrides:
        return to_numpy(values(tensor))
    return weights.override(name)
