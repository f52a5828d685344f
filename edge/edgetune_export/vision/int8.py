"""Int8 linear layers for the exported vision graph: the fastest scheme for each layer that is accurate enough for it.

One scale for all activations of a layer, found at each call (*dynamic*) or known from calibration (*static*), makes
integer products about three times as fast as float32 ones. *By block* every 32 weights, and activations alike, share a
scale: hardly faster than float32 for this many rows, but immune to the few very large activations that vision
transformers tend to have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgetune_export.graph import MICROSOFT
from edgetune_export.vision.products import WEIGHT_LIMIT, Layer, Product, Range

MAX_ERROR = 0.04
"""Largest relative error of the output of a layer with one scale for its activations. Well-behaved ones give 0.007 to
0.03; one value a hundred times the others gives several tenths."""

_ROWS = 512
"""Rows of a layer's output that its error is taken from, evenly spread: more do not change it."""

Rounding = Callable[[str, Tensor], Tensor]
"""What a scheme keeps of a layer's input, by the name of its weight."""


@dataclass(frozen=True)
class Seen:
    """A vision tower and pictures to try it on.

    Attributes:
        tower: of transformers.
        blocks: its list of transformer blocks, by its name in the tower.
        look: lets the model see one of `images`.
        images: the model's keyword arguments of each picture.
    """

    tower: nn.Module
    blocks: str
    look: Callable[..., object]
    images: Sequence[Mapping[str, Tensor]]


def dynamic_layers(seen: Seen) -> frozenset[str]:
    """Names of the graph's weights whose layers stay accurate in the dynamic scheme."""
    return _accurate_layers(seen, lambda name, values: _rounded(values, *_dynamic_levels(values)))


def static_layers(seen: Seen, ranges: Mapping[str, Range]) -> frozenset[str]:
    """Those that stay accurate in the static one, with these ranges by the name of the weight."""
    return _accurate_layers(seen, lambda name, values: _rounded(values, ranges[name].scale, ranges[name].zero))


@torch.no_grad()
def _accurate_layers(seen: Seen, kept: Rounding) -> frozenset[str]:
    """Try the scheme on every layer of the transformer blocks.

    Mergers are left out: they are a small share of the work, and all that the decoder sees.
    """
    errors: dict[str, float] = {}

    def observe(name: str) -> Any:
        def hook(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            some = slice(None, None, -(-(output.numel() // output.shape[-1]) // _ROWS))
            values = inputs[0].flatten(end_dim=-2)
            exact = values[some] @ layer.weight.T
            scale = layer.weight.abs().amax(dim=1, keepdim=True) / WEIGHT_LIMIT
            weight = (layer.weight / scale).round() * scale
            error = (kept(name, values)[some] @ weight.T - exact).norm() / exact.norm()
            errors[name] = max(errors.get(name, 0.0), float(error))

        return hook

    layers = [(name, layer) for name, layer in seen.tower.named_modules() if isinstance(layer, nn.Linear)]
    hooks = [
        layer.register_forward_hook(observe(f"tower.{name}.weight"))
        for name, layer in layers
        if name.startswith(f"{seen.blocks}.")
    ]
    try:
        for image in seen.images:
            seen.look(**image)
    finally:
        for handle in hooks:
            handle.remove()
    return frozenset(name for name, error in errors.items() if error <= MAX_ERROR)


def _dynamic_levels(values: Tensor) -> tuple[float, float]:
    """Scale and zero point of DynamicQuantizeLinear."""
    low, high = float(values.amin().clamp(max=0)), float(values.amax().clamp(min=0))
    scale = max((high - low) / 255, torch.finfo(torch.float32).tiny)
    return scale, round(-low / scale)


def _rounded(values: Tensor, scale: float, zero: float) -> Tensor:
    """What uint8 codes keep of a tensor."""
    return (((values / scale).round() + zero).clamp(0, 255) - zero) * scale


def quantize_linears(model: ir.Model, choose: Callable[[str], Product]) -> None:
    """Rewrite every linear layer but the patch embedding, in place, in the scheme chosen by the name of its weight.

    The patch embedding is the first one: under one percent of the work, and every later layer sees its error.
    """
    linears = [node for node in model.graph if node.op_type == "Gemm"]
    for node in linears[1:]:
        if not node.attributes.get_int("transB", 0):
            raise ValueError(f"{node.name}: expected the weight of a linear layer as [N, K]")
        source = node.inputs[1]
        assert source is not None and source.name is not None and source.const_value is not None
        nodes = choose(source.name)(Layer(model.graph, node, source.name, source.const_value.numpy()))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        for value in (source, bias):
            if value is not None and value.name is not None and not value.uses():
                model.graph.initializers.pop(value.name, None)
    if any(node.domain == MICROSOFT for node in model.graph):
        model.opset_imports[MICROSOFT] = 1
