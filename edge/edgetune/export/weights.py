"""The decoder of a loaded checkpoint as plain facts and arrays: what every ONNX dialect builds from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, Float, in_nibbles, round_to_nearest
from edgetune_runtime.quant.weightset import HEAD, Order, WeightSet

TEXT = "model.language_model"
"""Where transformers keeps the text model of every supported family."""

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linear layers of a decoder block."""

STATIC_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
"""Rotary variants whose frequencies do not depend on the sequence; the others need a graph that looks at its length."""


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of a decoder of the RMSNorm, RoPE, grouped-query, SwiGLU kind, and its rotary matrix.

    Attributes:
        rope: float32 [3, head_dim / 2]; angles of a token = its (t, h, w) position @ rope. A column has one nonzero,
            the frequency in the row of the axis that drives it, so interleaved and sectioned M-RoPE are one graph.
        rope_scale: factor on cos and sin (1 but for YaRN).
        deepstack: number of first layers after which image features are added.
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


@dataclass(frozen=True)
class Part:
    """One linear layer of the model, by its name in transformers, and the weight set that may hold it."""

    name: str
    module: nn.Linear
    weights: WeightSet | None

    @property
    def format(self) -> BlockFormat | None:
        """How the weight set quantizes it, None when it does not."""
        return self.weights.format(self.name) if self.weights is not None and self.name in self.weights else None

    def dense(self) -> Float:
        """Float32 weight [N, K] of the checkpoint."""
        return to_numpy(self.module.weight)

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
        return parameter(f"{self.name}.bias", self.module.bias, self.weights)


class Linear:
    """One product of the graph: which layers are stacked in its weight [N, K], and the format it is written in.

    Args:
        name: of the product in the graph.
        parts: layers that read the same input.
        fallback: format of layers that the weight set does not hold, None for dense.

    Raises:
        InputError: the weight set has the parts in different formats.
    """

    def __init__(self, name: str, parts: Sequence[Part], fallback: BlockFormat | None) -> None:
        self.name = name
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
        return sum(part.module.weight.shape[0] for part in self.parts)

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
        if not self.calibrated:
            return round_to_nearest(self.dense(), self.format)
        weights = [part.blocks() for part in self.parts]
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


class DecoderWeights:
    """Access to a decoder's weights by role.

    Args:
        model: a loaded Qwen2.5-VL or Qwen3-VL model for conditional generation.
        layers_format: format of the layers' linear weights that `weights` does not hold, None for dense.
        head_format: format of the language model head when `weights` does not hold it.
        weights: a weight set calibrated from this model; the layers, norms and biases in it take their place.

    Raises:
        InputError: the decoder's kind is not supported, or the set names what the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers_format: BlockFormat | None,
        head_format: BlockFormat | None,
        weights: WeightSet | None = None,
    ) -> None:
        source: Any = model
        self._text = source.model.language_model
        self._head = source.lm_head
        self._layers_format, self._head_format = layers_format, head_format
        self._weights = weights
        deepstack = len(getattr(source.model.visual, "deepstack_merger_list", ()))
        self.spec = _read_spec(self._text, deepstack)
        if weights is not None:
            check_names(model, weights)

    def linear(self, layer: int, *roles: str) -> Linear:
        """A linear layer such as "self_attn.q_proj"; several roles that read the same input are stacked along N."""
        block = self._text.layers[layer]
        name = f"model.layers.{layer}." + "_".join((roles[0], *(role.rpartition(".")[2] for role in roles[1:])))
        parts = [Part(f"{TEXT}.layers.{layer}.{role}", block.get_submodule(role), self._weights) for role in roles]
        return Linear(name, parts, self._layers_format)

    def head(self) -> Linear:
        """The language model head, tied or not."""
        return Linear(HEAD, [Part(HEAD, self._head, self._weights)], self._head_format)

    def rounded(self) -> Iterator[Linear]:
        """The layers, head included, that are rounded to nearest because the weight set does not hold them."""
        every = [self.linear(layer, role) for layer in range(self.spec.layers) for role in LINEARS]
        return (linear for linear in (*every, self.head()) if linear.format is not None and not linear.calibrated)

    def embedding(self) -> Float:
        """Float32 token table [V, H]."""
        return to_numpy(self._text.embed_tokens.weight)

    def norm(self, layer: int | None, role: str) -> Float | None:
        """A norm's weight, such as "input_layernorm"; layer None is the final norm. None where there is none."""
        owner = self._text if layer is None else self._text.layers[layer]
        name = f"{TEXT}.{role}" if layer is None else f"{TEXT}.layers.{layer}.{role}"
        try:
            return parameter(f"{name}.weight", owner.get_submodule(role).weight, self._weights)
        except AttributeError:
            return None


def check_names(model: nn.Module, weights: WeightSet) -> None:
    """Raise `InputError` when a weight set holds a layer or a parameter that the model lacks."""
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in (*(set(weights.names) - layers), *(set(weights.overrides) - parameters)):
        raise InputError(
            f"{weights.folder}: the weight set holds {name}, which the checkpoint has not",
            hint="export the checkpoint that the set was calibrated from",
        )


def parameter(name: str, tensor: torch.Tensor, weights: WeightSet | None) -> Float:
    """A parameter as float32: the weight set's where it replaces it, else the checkpoint's."""
    if weights is None or name not in weights.overrides:
        return to_numpy(tensor)
    return weights.override(name)


def to_numpy(tensor: torch.Tensor) -> Float:
    """Float32 copy of a tensor on the CPU."""
    array: Float = tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array


def _read_spec(text: Any, deepstack: int) -> DecoderSpec:
    config = text.config
    if config.hidden_act != "silu":
        raise InputError(f"decoder activation {config.hidden_act!r} is not supported", hint="supported: silu")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise InputError("decoder with sliding-window layers is not supported", hint="set use_sliding_window to false")
    attention, rotary = text.layers[0].self_attn, text.rotary_emb
    if rotary.rope_type not in STATIC_ROPE_TYPES:
        supported = ", ".join(STATIC_ROPE_TYPES)
        raise InputError(f"rope type {rotary.rope_type!r} is not supported", hint=f"supported: {supported}")
    rope, scale = _rope_matrix(rotary)
    return DecoderSpec(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        vocabulary=text.embed_tokens.weight.shape[0],
        norm_eps=config.rms_norm_eps,
        rope=rope,
        rope_scale=scale,
        deepstack=deepstack,
    )


def _rope_matrix(rotary: Any) -> tuple[NDArray[np.float32], float]:
    """Read the rotary matrix off the module itself: a unit position on one axis turns only the columns of that axis."""
    half = rotary.inv_freq.shape[0]
    matrix = np.zeros((3, half), np.float32)
    probe = torch.zeros(1, dtype=torch.float32)
    for axis in range(3):
        position = torch.zeros(3, 1, 1, dtype=torch.int64)
        position[axis] = 1
        _, sin = rotary(probe, position)
        driven = sin[0, 0, :half] != 0
        matrix[axis] = torch.where(driven, rotary.inv_freq.float(), 0.0).numpy()
    if not (np.count_nonzero(matrix, axis=0) == 1).all():
        raise InputError("the checkpoint's rotary embedding does not split into time, height and width sections")
    return matrix, float(rotary.attention_scaling)
