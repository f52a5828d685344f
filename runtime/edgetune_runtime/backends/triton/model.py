"""The decoder as the engine holds it, and one pass over it in plain torch, which runs without a GPU.

Every supported family is RMSNorm, rotary embedding, grouped-query attention and SwiGLU, with optional biases, q/k norms
and DeepStack. The residual stream, norms and attention scores are float32; products are in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch.nn import functional

from edgetune_runtime.backends.triton.packing import PackedLinear


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder; `head_dim` is that of attention's heads."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float


@dataclass(frozen=True)
class Layer:
    """One block; norms float32. `qkv` and `gate_up` are stacked along their outputs in that order."""

    input_norm: torch.Tensor
    qkv: PackedLinear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: PackedLinear
    post_norm: torch.Tensor
    gate_up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class Decoder:
    """A decoder on one device.

    Attributes:
        dtype: of products and of the cache.
        rope: float32 [3, head_dim / 2]; angles of a token = its (t, h, w) position @ rope.
        embedding: [V, hidden] of any float dtype.
    """

    sizes: Sizes
    dtype: torch.dtype
    rope: torch.Tensor
    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: PackedLinear

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.embedding.device

    @property
    def products(self) -> list[PackedLinear]:
        """The linear layers of all blocks."""
        return [each for layer in self.layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down)]

    def with_products(self, products: Iterable[PackedLinear]) -> Decoder:
        """The same with other linear layers in the place of `products`, in their order."""
        rest = iter(products)
        layers = [
            replace(layer, qkv=next(rest), out=next(rest), gate_up=next(rest), down=next(rest)) for layer in self.layers
        ]
        return replace(self, layers=tuple(layers))


@dataclass(frozen=True)
class Cache:
    """Static key and value buffers [layers, kv_heads, capacity, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def empty(cls, decoder: Decoder, capacity: int) -> Cache:
        """Room for `capacity` tokens."""
        shape = cls._shape(decoder.sizes, capacity)
        keys, values = (torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(2))
        return cls(keys, values)

    @classmethod
    def nbytes(cls, decoder: Decoder, capacity: int) -> int:
        """What room for `capacity` tokens takes."""
        return 2 * decoder.dtype.itemsize * prod(cls._shape(decoder.sizes, capacity))

    @staticmethod
    def _shape(sizes: Sizes, capacity: int) -> tuple[int, int, int, int]:
        return sizes.layers, sizes.kv_heads, capacity, sizes.head_dim

    @property
    def capacity(self) -> int:
        """Most tokens."""
        return int(self.keys.shape[2])


@torch.inference_mode()
def forward(
    decoder: Decoder,
    cache: Cache,
    past: int,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    deepstack: Sequence[torch.Tensor] = (),
    *,
    at: Sequence[int] = (-1,),
    sees: torch.Tensor | None = None,
    head: PackedLinear | None = None,
) -> torch.Tensor:
    """Append tokens to a cache that holds `past` and return logits float32 [len(at), V].

    Args:
        decoder: the model.
        cache: written at `past` and on.
        past: tokens already in the cache.
        embeddings: float32 [S, hidden].
        positions: [3, S].
        deepstack: float32 [S, hidden] to add after each of the first layers.
        at: after which of these tokens logits are wanted, for the head is the largest product.
        sees: bool [S, past + S], which of all tokens up to itself each new one sees; None for all.
        head: in place of the decoder's, such as some rows of it.
    """
    sizes = decoder.sizes
    count = len(embeddings)
    angles = positions.to(torch.float32).T @ decoder.rope  # [S, head_dim / 2]
    angles = torch.cat([angles, angles], 1)
    cos, sin = angles.cos(), angles.sin()
    # Token i of these sees what was there before and the first i + 1 of these.
    seen = torch.ones(count, past + count, dtype=torch.bool, device=decoder.device).tril(past)
    if sees is not None:
        seen &= sees

    def linear(layer: PackedLinear, states: torch.Tensor) -> torch.Tensor:
        product = functional.linear(states.to(decoder.dtype), layer.dense(decoder.dtype)).float()
        return product if layer.bias is None else product + layer.bias

    def norm(states: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(states, (states.shape[-1],), gain, sizes.norm_eps)

    def heads(states: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
        """Split [S, n·d] into rotated heads [n, S, d]."""
        split = states.view(count, -1, sizes.head_dim)
        split = (split if gain is None else norm(split, gain)).transpose(0, 1)
        low, high = split.chunk(2, dim=2)
        return split * cos + torch.cat([-high, low], 2) * sin

    states = embeddings
    for number, layer in enumerate(decoder.layers):
        widths = [sizes.heads * sizes.head_dim, *(sizes.kv_heads * sizes.head_dim,) * 2]
        query, key, value = linear(layer.qkv, norm(states, layer.input_norm)).split(widths, dim=1)
        keys, values = cache.keys[number, :, : past + count], cache.values[number, :, : past + count]
        keys[:, past:] = heads(key, layer.k_norm)
        values[:, past:] = value.view(count, -1, sizes.head_dim).transpose(0, 1)
        mixed = functional.scaled_dot_product_attention(
            heads(query, layer.q_norm).to(decoder.dtype)[None],
            keys[None],
            values[None],
            attn_mask=seen,
            enable_gqa=True,
        )[0]
        states = states + linear(layer.out, mixed.transpose(0, 1).reshape(count, -1))
        gate, up = linear(layer.gate_up, norm(states, layer.post_norm)).chunk(2, dim=1)
        states = states + linear(layer.down, functional.silu(gate) * up)
        if number < len(deepstack):
            states = states + deepstack[number]
    return linear(decoder.head if head is None else head, norm(states[list(at)], decoder.norm))
