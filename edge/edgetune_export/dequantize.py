"""The reference that a quantized export has to equal: the model in transformers, with the weights that were written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from edgetune_core.streaming import Replaced, StreamedModel
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_export.decoder.linear import Linear
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_runtime.families.base import Modules


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
        values[f"{linear.parts[0].name}.weight"] = partial(_rounded, linear)
    if weights is not None:
        values |= {f"{name}.weight": partial(dequantized, weights, name) for name in weights.names}
        values |= {name: partial(_override, weights, name) for name in weights.overrides}
    config, shapes = copy.deepcopy(streamed.model.config), {}
    if f"{HEAD}.weight" in values:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        shapes[f"{HEAD}.weight"] = tuple(streamed.model.get_output_embeddings().weight.shape)
    return StreamedModel(
        config, Replaced(streamed.tensors, values, shapes), modules, device=streamed.device, keep=streamed.keep
    )


def dequantized(weights: WeightSet, name: str) -> Tensor:
    """A layer's weight [out, in] in float32."""
    return torch.from_numpy(weights.dequantized(name))


def _override(weights: WeightSet, name: str) -> Tensor:
    return torch.from_numpy(weights.override(name))


def _rounded(linear: Linear) -> Tensor:
    return torch.from_numpy(linear.blocks().dequantize())
