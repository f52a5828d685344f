"""The reference that a quantized export has to equal: the model in transformers, with the weights that were written."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgetune_core.weightset import HEAD, WeightSet
from edgetune_export.decoder.weights import DecoderWeights, check_names
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import Float


@torch.no_grad()
def apply_weights(model: nn.Module, weights: WeightSet) -> None:
    """Put a weight set's dequantized layers and its overrides into the model it was calibrated from, in place.

    A head that shares the embedding's weight gets one of its own; the embedding keeps its values.

    Raises:
        InputError: the set names a layer or parameter that the model has not, or one of another shape.
    """
    check_names(model, weights)
    for name in weights.names:
        _assign(model, name, weights.dequantized(name))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in weights.overrides:
        parameters[name].copy_(torch.from_numpy(weights.override(name)))


@torch.no_grad()
def apply_rounding(model: nn.Module, decoder: DecoderWeights) -> None:
    """Put the layers that an export rounds to nearest into its model, in place, once they are written."""
    for linear in decoder.rounded():
        _assign(model, linear.parts[0].name, linear.blocks().dequantize())


def _assign(model: nn.Module, name: str, values: Float) -> None:
    """Replace a linear layer's weight [N, K]."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    if values.shape != tuple(layer.weight.shape):
        raise InputError(
            f"{name} is {list(values.shape)} in the weight set and {list(layer.weight.shape)} in the checkpoint",
            hint="export the checkpoint that the set was calibrated from",
        )
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(layer.weight.device, layer.weight.dtype)
    if name == HEAD:  # it may be the embedding's own tensor
        layer.weight = nn.Parameter(tensor, requires_grad=False)
    else:
        layer.weight.copy_(tensor)
