"""Several tokens in one pass on a CUDA device: a prompt, or tokens that are known already. A CUDA graph a size.

Sizes are rounded up, so that few graphs serve all prompts; how many tokens there really are stands on the device.
Products are torch's where the decoder's weights are unpacked. Where they are packed, a product of up to `FEW` tokens
reads them once; for more, a weight is unpacked in front of its product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from edgetune_runtime.backends.triton.chunk_kernels import (
    add_norm_kernel,
    glu_kernel,
    join_kernel,
    place_kernel,
    read_kernel,
)
from edgetune_runtime.backends.triton.graph import Graph, Pool
from edgetune_runtime.backends.triton.matrix_kernel import matrix_kernel
from edgetune_runtime.backends.triton.model import Cache, Decoder
from edgetune_runtime.backends.triton.packing import PackedLinear
from edgetune_runtime.backends.triton.step import dequantize, zero_of

ONE = 0x3F800000
"""The bits of 1.0."""

SMALL = (16, 32, 64)
"""Sizes for what follows a picture, and for known tokens."""

STEP = 128
"""Larger sizes are multiples of this."""

FEW = 16
"""Tokens up to which a product reads packed weights."""

SPLITS = 8
"""Ranges that attention of sizes in `SMALL` cuts the cache into, whose tokens alone are too few for a GPU."""


def chunk_size(count: int) -> int:
    """The size that `count` tokens are read in."""
    return next((size for size in SMALL if count <= size), triton.cdiv(count, STEP) * STEP)


class Chunk:
    """Reads up to `size` tokens into a cache.

    Args:
        decoder: the model, its weights packed or not.
        cache: written.
        size: one that `chunk_size` gives.
        deepstack: after how many layers features are added.
        branches: whether `read` is told what tokens see.
        pool: memory that recorded passes share, which run one at a time.

    Attributes:
        states: float32 [size, hidden], the tokens' embeddings; what each layer adds is added to them.
        features: float32 [size, hidden] for each DeepStack layer.
        positions: int64 [3, size].
        past: int64 [1], tokens in the cache.
        count: int64 [1], tokens to append.
        sees: uint8 [size, capacity] with `branches`: which tokens each new one sees, where `chosen` is not 0.
        chosen: int64 [1]; 0 where each sees all before it.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        size: int,
        deepstack: int = 0,
        *,
        branches: bool = False,
        pool: Pool | None = None,
    ) -> None:
        self._decoder, self._cache, self._size = decoder, cache, size
        sizes = decoder.sizes

        def empty(*shape: int, dtype: torch.dtype = decoder.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=decoder.device)

        self.states = empty(size, sizes.hidden, dtype=torch.float32)
        self.features = [empty(size, sizes.hidden, dtype=torch.float32) for _ in range(deepstack)]
        self.positions = empty(3, size, dtype=torch.int64)
        self.past, self.count, self.chosen = (empty(1, dtype=torch.int64) for _ in range(3))
        self.sees = empty(size if branches else 0, cache.capacity, dtype=torch.uint8)
        self._normed = empty(size, sizes.hidden)
        self._queries = empty(size, sizes.heads * sizes.head_dim)
        self._mixed = empty(size, sizes.heads * sizes.head_dim)
        self._active = empty(size, sizes.intermediate)
        self._splits = SPLITS if size in SMALL else 1
        shape = (self._splits, size, sizes.heads) if self._splits > 1 else (0, 0, 0)
        self._part_out = empty(*shape, sizes.head_dim, dtype=torch.float32)
        self._part_top, self._part_sum = (empty(*shape, dtype=torch.float32) for _ in range(2))
        self._graph = Graph(self._launch, decoder.device, (self.states,), pool)

    def read(
        self,
        past: int,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        deepstack: Sequence[torch.Tensor],
        sees: torch.Tensor | None = None,
    ) -> None:
        """Append tokens, at most `size`; `logits` then tells what follows each.

        Args:
            past: tokens in the cache.
            embeddings: float32 [S, hidden], on any device.
            positions: int64 [3, S].
            deepstack: float32 [S, hidden] for each of `features`.
            sees: bool [S, past + S], or None where each token sees all before it.
        """
        count = len(embeddings)
        self.states[:count].copy_(embeddings)
        self.states[count:].zero_()  # else the last pass's output, added to itself again and again
        self.positions[:, :count].copy_(positions)
        for held, features in zip(self.features, deepstack, strict=True):
            held[:count].copy_(features)
        if sees is not None:
            self.sees[:count, : past + count].copy_(sees)
        self.chosen.fill_(sees is not None)
        self.past.fill_(past)
        self.count.fill_(count)
        self._graph.replay()

    def prepare(self) -> None:
        """Record the pass, without tokens."""
        self.count.fill_(0)
        self._graph.prepare()

    def logits(self, head: PackedLinear, at: Sequence[int]) -> torch.Tensor:
        """Float32 [len(at), N] of a head's outputs, after tokens of the last `read`."""
        normed = self._normed[torch.tensor(at, dtype=torch.int64, device=self._normed.device)]
        out = torch.empty(len(at), head.rows, dtype=torch.float32, device=normed.device)
        for start in range(0, len(at), SMALL[0]):
            multiply(head, normed[start : start + SMALL[0]], out[start : start + SMALL[0]])
        return out if head.bias is None else out + head.bias

    def _launch(self) -> None:
        product: torch.Tensor | None = None
        features: torch.Tensor | None = None
        for number, layer in enumerate(self._decoder.layers):
            self._add_norm(self.states, product, features, layer.input_norm, self._normed)
            self._attend(number, self._product(layer.qkv, self._normed, biased=False))
            product = self._product(layer.out, self._mixed)
            self._add_norm(self.states, product, None, layer.post_norm, self._normed)
            gate_up = self._product(layer.gate_up, self._normed)
            intermediate = self._decoder.sizes.intermediate
            glu_kernel[(self._size, triton.cdiv(intermediate, 1024))](gate_up, self._active, intermediate, BLOCK=1024)
            product = self._product(layer.down, self._active)
            features = self.features[number] if number < len(self.features) else None
        self._add_norm(self.states, product, features, self._decoder.norm, self._normed)

    def _attend(self, number: int, qkv: torch.Tensor) -> None:
        layer, sizes, cache = self._decoder.layers[number], self._decoder.sizes, self._cache
        keys, values = cache.keys[number], cache.values[number]
        place_kernel[(self._size, sizes.heads + 2 * sizes.kv_heads)](
            qkv, layer.qkv.bias, layer.q_norm, layer.k_norm, self.positions, self._decoder.rope,
            self._queries, keys, values, self.past, self.count, self._size, cache.capacity, sizes.norm_eps,
            HEADS=sizes.heads, KV_HEADS=sizes.kv_heads, HALF=sizes.head_dim // 2,
            BIAS=layer.qkv.bias is not None, QK_NORM=layer.q_norm is not None, num_warps=1,
        )  # fmt: skip
        rows = min(self._size, 64)
        read_kernel[(triton.cdiv(self._size, rows), sizes.heads, self._splits)](
            self._queries, keys, values, self.past, self.count, self.sees, self.chosen, self._mixed,
            self._part_out, self._part_top, self._part_sum, self._size, cache.capacity,
            HEADS=sizes.heads, KV_HEADS=sizes.kv_heads, SIZE=sizes.head_dim, ROWS=rows, TILE=64, SPLITS=self._splits,
            num_warps=4,
        )  # fmt: skip
        if self._splits > 1:
            join_kernel[(self._size, sizes.heads)](
                self._part_out, self._part_top, self._part_sum, self._mixed, self._size,
                HEADS=sizes.heads, SIZE=sizes.head_dim, SPLITS=self._splits, num_warps=1,
            )  # fmt: skip

    def _add_norm(
        self,
        states: torch.Tensor,
        product: torch.Tensor | None,
        features: torch.Tensor | None,
        gain: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        sizes = self._decoder.sizes
        add_norm_kernel[(len(states),)](
            states, product, features, gain, out, sizes.hidden, sizes.norm_eps,
            ADD=product is not None, FEATURES=features is not None, BLOCK=triton.next_power_of_2(sizes.hidden),
        )  # fmt: skip

    def _product(self, layer: PackedLinear, inputs: torch.Tensor, *, biased: bool = True) -> torch.Tensor:
        """The layer's output [size, N]; without its bias where who asked adds it."""
        if layer.scales is None:
            out = inputs @ layer.dense(inputs.dtype).T
        elif len(inputs) <= FEW:
            out = torch.empty(len(inputs), layer.rows, dtype=inputs.dtype, device=inputs.device)
            multiply(layer, inputs, out)
        else:
            out = inputs @ dequantize(layer, self._decoder.dtype).T
        return out + layer.bias.to(out.dtype) if biased and layer.bias is not None else out


def multiply(layer: PackedLinear, inputs: torch.Tensor, out: torch.Tensor) -> None:
    """Write inputs [S, K] · weightᵀ to out [S, N], for a few rows S; the bias is not added."""
    words = int(layer.weight.shape[2])
    block_rows, block_words, warps, stages = _tile(layer)
    matrix_kernel[(triton.cdiv(layer.rows, block_rows),)](
        inputs, layer.weight, layer.scales, layer.zeros, out, layer.rows, len(inputs), ONE,
        GROUPS=int(layer.weight.shape[1]), GROUP=layer.group, WORDS=words, BITS=layer.bits, ZERO=zero_of(layer),
        TOKENS=max(16, triton.next_power_of_2(len(inputs))), BLOCK_ROWS=block_rows,
        BLOCK_GROUPS=max(1, block_words // words), num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _tile(layer: PackedLinear) -> tuple[int, int, int, int]:
    """Rows and words at once, warps and stages of a program: the fastest of a dozen on an H200."""
    if layer.rows > 8192:
        return 64, 32, 4, 4
    return (32, 128, 4, 3) if layer.rows > 2048 else (16, 128, 2, 3)
