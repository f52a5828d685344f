"""The reference that a quantized export has to equal: the model in transformers, with the weights that were written."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edgetune_core.streaming import Replaced, StreamedModel
from edgetune_core.weightset import HEAD, Order, WeightSet
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockWeight


@dataclass(frozen=True)
class Dequantized:
    """A linear layer's weight [out, in] in float32, made of its codes when it is asked for.

    Attributes:
        blocks: reads the codes.
        order: which input each of their columns reads; None for the model's order.
    """

    blocks: Callable[[], BlockWeight]
    order: Callable[[], Order | None] = lambda: None

    @classmethod
    def of(cls, weights: WeightSet, name: str) -> Dequantized:
        """A layer of a weight set."""
        return cls(partial(weights.weight, name), partial(weights.order, name))

    def __call__(self) -> Tensor:
        """The whole weight."""
        (whole,) = self.parts(sys.maxsize)
        return whole

    def parts(self, rows: int) -> Iterator[Tensor]:
        """Its rows in order, so many at a time; in memory as a whole are the codes alone."""
        weight, order = self.blocks(), self.order()
        columns = slice(None) if order is None else np.argsort(order)
        for first in range(0, len(weight.codes), rows):
            yield torch.from_numpy(weight.rows(first, first + rows).dequantize()[:, columns])


def written(
    streamed: StreamedModel, modules: Modules, decoder: DecoderWeights, weights: WeightSet | None
) -> StreamedModel:
    """The model with the values that an export writes: those of the weight set, else what rounding makes of its own.

    A head that shares the embedding's weight gets one of its own; the embedding keeps its values.

    Args:
        streamed: the merged model.
        modules: names of its family.
        decoder: what is written of it.
        weights: the set it is written from.
    """
    values: dict[str, Callable[[], Tensor]] = {}
    for linear in decoder.rounded():
        values[f"{linear.parts[0].name}.weight"] = Dequantized(linear.blocks)
    if weights is not None:
        values |= {f"{name}.weight": Dequantized.of(weights, name) for name in weights.names}
        values |= {name: partial(_override, weights, name) for name in weights.overrides}
    config, shapes = copy.deepcopy(streamed.model.config), {}
    if f"{HEAD}.weight" in values:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        shapes[f"{HEAD}.weight"] = tuple(streamed.model.get_output_embeddings().weight.shape)
    return StreamedModel(
        config, Replaced(streamed.tensors, values, shapes), modules, device=streamed.device, keep=streamed.keep
    )


def _override(weights: WeightSet, name: str) -> Tensor:
    return torch.from_numpy(weights.override(name))
