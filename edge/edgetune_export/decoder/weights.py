"""The decoder of a loaded checkpoint as plain facts and arrays: what every ONNX dialect builds from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetune_core.blocks import of_blocks
from edgetune_core.streaming import Values, own_values
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_export.decoder.delta import DeltaParameters, DeltaSpec
from edgetune_export.decoder.linear import Linear, Part, parameter
from edgetune_export.decoder.rounding import to_numpy
from edgetune_export.decoder.short_conv import ConvParameters, ConvSpec
from edgetune_runtime.backends import Int
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockFormat, Float

_TABLE_ROWS = 8192

STATIC_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
"""Rotary variants whose frequencies do not depend on the sequence; the others need a graph that looks at its length."""


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of a decoder of the RMSNorm, RoPE, grouped-query, SwiGLU kind, and its rotary matrix.

    Attributes:
        rope: float32 [3, d / 2], where d of a head's dimensions turn, mostly all of them; angles of a token = its (t,
            h, w) position @ rope. A column has one nonzero, the frequency in the row of the axis that drives it, so
            interleaved and sectioned M-RoPE are one graph, and ordinary positions, which are all t's, too.
        rope_scale: factor on cos and sin (1 but for YaRN).
        deepstack: number of first layers after which image features are added.
        gated: whether each head's output of attention is multiplied by a gate, whose inputs are in q_proj behind the
            head's query.
        delta: sizes of the delta nets, None without any.
        delta_layers: which layers are delta nets in place of attention.
        conv: sizes of the short convolutions, None without any.
        conv_layers: which layers are short convolutions in place of attention.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float
    rope: NDArray[np.float32]
    rope_scale: float
    deepstack: int
    gated: bool = False
    delta: DeltaSpec | None = None
    delta_layers: frozenset[int] = frozenset()
    conv: ConvSpec | None = None
    conv_layers: frozenset[int] = frozenset()

    def recurrent(self, layer: int) -> DeltaSpec | ConvSpec | None:
        """Sizes of what a layer has in place of attention, whose state is of a fixed size; None where it attends."""
        if layer in self.delta_layers:
            return self.delta
        return self.conv if layer in self.conv_layers else None


class DecoderWeights:
    """Access to a decoder's weights by role; roles are Llama's names, whatever the family calls them.

    Args:
        model: of transformers, for conditional generation, loaded or streamed.
        modules: names of its family.
        layers_format: format of the layers' linear weights that `weights` does not hold, None for dense.
        head_format: format of the language model head when `weights` does not hold it.
        weights: a weight set calibrated from this model; the layers, norms and biases in it take their place.
        values: what a parameter of the model holds.
        device: where weights are rounded to nearest.

    Attributes:
        spec: its sizes.
        tied: whether the head's weight is the token table.

    Raises:
        InputError: the decoder's kind is not supported, or the set names what the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Modules,
        *,
        layers_format: BlockFormat | None,
        head_format: BlockFormat | None,
        weights: WeightSet | None = None,
        values: Values = own_values,
        device: torch.device | str = "cpu",
    ) -> None:
        source: Any = model
        self._values, self._device = values, torch.device(device)
        self._text, self._root = source.get_submodule(modules.text_root), modules.text_root
        self._head = source.get_output_embeddings()
        self._layers_format, self._head_format = layers_format, head_format
        self._weights = weights
        self._norm_offset, self._called = np.float32(modules.norm_offset), modules.called
        self.tied = self._head.weight is self._text.embed_tokens.weight
        self._names = of_blocks(modules, self._text.layers)
        deepstack = len(getattr(source.get_submodule(modules.vision_root), "deepstack_merger_list", ()))
        self.spec = _read_spec(self._text, modules, deepstack)
        if weights is not None:
            check_names(model, weights)

    def linear(self, layer: int, *roles: str) -> Linear:
        """A linear layer such as "self_attn.q_proj"; several roles that read the same input are stacked along N."""
        block = self._text.layers[layer]
        roles = tuple(map(self._called, roles))
        name = f"model.layers.{layer}." + "_".join((roles[0], *(role.rpartition(".")[2] for role in roles[1:])))
        return Linear(name, [self._part(layer, block, role) for role in roles], self._layers_format, self._device)

    def products(self, layer: int, *roles: str) -> list[tuple[Linear, tuple[str, ...]]]:
        """Products of linear layers that read the same input, and the roles in each.

        There is one, but where the weight set has layers in different formats, or with inputs in different orders.
        """
        block, groups = self._text.layers[layer], dict[object, list[str]]()
        for role in roles:
            part = self._part(layer, block, self._called(role))
            order = part.order
            groups.setdefault((part.format, None if order is None else tuple(order)), []).append(role)
        return [(self.linear(layer, *group), tuple(group)) for group in groups.values()]

    def _part(self, layer: int, block: Any, role: str) -> Part:
        return Part(f"{self._root}.layers.{layer}.{role}", block.get_submodule(role), self._weights, self._values)

    def head(self) -> Linear:
        """The language model head, tied or not."""
        return Linear(HEAD, [Part(HEAD, self._head, self._weights, self._values)], self._head_format, self._device)

    def rounded(self) -> Iterator[Linear]:
        """The layers, head included, that are rounded to nearest because the weight set does not hold them."""
        every = (*self.linears(), self.head())
        return (linear for linear in every if linear.format is not None and not linear.calibrated)

    def linears(self) -> Iterator[Linear]:
        """All linear layers of the blocks, each by itself."""
        for layer, names in enumerate(self._names):
            yield from (self.linear(layer, role) for role in names.linears)

    def delta(self, layer: int) -> DeltaParameters:
        """The parameters of a delta net beside its linear layers."""
        module = self._text.layers[layer].linear_attn
        return DeltaParameters.of(f"model.layers.{layer}.linear_attn", module, self._read)

    def conv(self, layer: int) -> ConvParameters:
        """The parameters of a short convolution beside its linear layers."""
        return ConvParameters.of(f"model.layers.{layer}.conv", self._text.layers[layer].conv, self._read)

    def _read(self, tensor: torch.Tensor) -> Float:
        return to_numpy(self._values(tensor)).astype(np.float32)

    def embedded(self, token_ids: Int) -> Float:
        """Float32 rows [S, H] of the token table."""
        return to_numpy(self._values(self._text.embed_tokens.weight)[torch.from_numpy(token_ids)])

    def embedding_parts(self) -> Iterator[tuple[slice, Float]]:
        """The token table a few thousand rows at a time: which rows, and their values in float32."""
        table = self._values(self._text.embed_tokens.weight)
        for start in range(0, len(table), _TABLE_ROWS):
            rows = slice(start, min(start + _TABLE_ROWS, len(table)))
            yield rows, to_numpy(table[rows])

    def norm(self, layer: int | None, role: str) -> Float | None:
        """A norm's weight, such as "input_layernorm"; layer None is the final norm. None where there is none."""
        owner = self._text if layer is None else self._text.layers[layer]
        role = self._called(role)
        name = f"{self._root}.{role}" if layer is None else f"{self._root}.layers.{layer}.{role}"
        try:
            weight = owner.get_submodule(role).weight
        except AttributeError:
            return None
        return parameter(f"{name}.weight", weight, self._weights, self._values) + self._norm_offset


def check_names(model: nn.Module, weights: WeightSet) -> None:
    """Raise `InputError` when a weight set holds a layer or a parameter that the model lacks."""
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in (*(set(weights.names) - layers), *(set(weights.overrides) - parameters)):
        raise InputError(
            f"{weights.folder}: the weight set holds {name}, which the checkpoint has not",
            hint="export the checkpoint that the set was calibrated from",
        )


def _read_spec(text: Any, modules: Modules, deepstack: int) -> DecoderSpec:
    config, blocks = text.config, text.layers
    activation = getattr(config, "hidden_act", "silu")  # LFM2 has no choice of it
    if activation != "silu":
        raise InputError(f"decoder activation {activation!r} is not supported", hint="supported: silu")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise InputError("decoder with sliding-window layers is not supported", hint="set use_sliding_window to false")
    deltas, convs = (
        [number for number, block in enumerate(blocks) if hasattr(block, name)] for name in ("linear_attn", "conv")
    )
    attention = next((block.self_attn for block in blocks if hasattr(block, "self_attn")), None)
    if attention is None:
        raise InputError("a decoder without any layer of attention cannot be exported")
    rotary = text.rotary_emb
    if rotary.rope_type not in STATIC_ROPE_TYPES:
        supported = ", ".join(STATIC_ROPE_TYPES)
        raise InputError(f"rope type {rotary.rope_type!r} is not supported", hint=f"supported: {supported}")
    rope, scale = _rope_matrix(rotary)
    return DecoderSpec(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=blocks[0].get_submodule(modules.called("mlp.gate_proj")).out_features,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        vocabulary=text.embed_tokens.weight.shape[0],
        norm_eps=config.rms_norm_eps if hasattr(config, "rms_norm_eps") else config.norm_eps,
        rope=rope,
        rope_scale=scale,
        deepstack=deepstack,
        gated=attention.q_proj.out_features == 2 * config.num_attention_heads * attention.head_dim,
        delta=DeltaSpec.of(blocks[deltas[0]].linear_attn) if deltas else None,
        delta_layers=frozenset(deltas),
        conv=ConvSpec.of(blocks[convs[0]].conv) if convs else None,
        conv_layers=frozenset(convs),
    )


def _rope_matrix(rotary: Any) -> tuple[NDArray[np.float32], float]:
    """Read the rotary matrix off the module itself: a unit position on one axis turns only the columns of that axis."""
    half = rotary.inv_freq.shape[0]
    matrix = np.zeros((3, half), np.float32)
    frequencies = rotary.inv_freq.float()
    if "mrope_section" not in rotary.config.rope_parameters:  # positions are the tokens' own
        matrix[0] = to_numpy(frequencies)
        return matrix, float(rotary.attention_scaling)
    probe = torch.zeros_like(frequencies[:1])
    for axis in range(3):
        position = torch.zeros(3, 1, 1, dtype=torch.int64, device=frequencies.device)
        position[axis] = 1
        _, sin = rotary(probe, position)
        driven = sin[0, 0, :half] != 0
        matrix[axis] = to_numpy(torch.where(driven, frequencies, 0.0))
    if not (np.count_nonzero(matrix, axis=0) == 1).all():
        raise InputError("the checkpoint's rotary embedding does not split into time, height and width sections")
    return matrix, float(rotary.attention_scaling)
