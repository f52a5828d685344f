"""One decode step on a CUDA device: five kernels a layer, replayed as a CUDA graph.

All state of a step (token, position, length, cache) is on the device, so that greedy decoding replays the graph again
and again without asking the host.
"""

from __future__ import annotations

from functools import partial

import torch
import triton

from edgetune_runtime.backends.triton.attention_kernel import attention_kernel
from edgetune_runtime.backends.triton.graph import Graph
from edgetune_runtime.backends.triton.linear_kernel import dequantize_kernel, linear_kernel
from edgetune_runtime.backends.triton.model import Cache, Decoder
from edgetune_runtime.backends.triton.packing import PackedLinear
from edgetune_runtime.backends.triton.token_kernels import begin_kernel, pick_kernel

SPLITS = 16
"""Ranges that attention cuts the cache into. With twice as many it took 5.4 µs for 5.8 at 760 tokens on an H200, but
3.7 for 3.4 at 100."""

SHORTEST = 16
"""Tokens under which joining the ranges' results costs more than reading them one after the other."""

HEAD_ROWS = 32768
"""A layer with more rows is a head, whose programs keep the GPU busy for long."""

ATTENTION_TILE, ATTENTION_WARPS = 16, 1
"""Tokens that a program of attention reads at once, and its warps."""


class Step:
    """Decodes one token at a time into a cache.

    Attributes:
        states: float32 [hidden], the token's embedding: input of `forward`.
        positions: int64 [3], the token's position.
        past: int64 [1], tokens in the cache.
        token: int64 [1], input and output of `greedy`.
        tokens: int64 [capacity], what `greedy` chose after that many tokens.
        logits: float32 [V].
        answers: float32 [N], outputs of `answer_head`.

    Args:
        decoder: the model.
        cache: written.
        answer_head: some outputs of the decoder's head, or None.
    """

    def __init__(self, decoder: Decoder, cache: Cache, answer_head: PackedLinear | None = None) -> None:
        self._decoder, self._cache, self._answer_head = decoder, cache, answer_head
        sizes, device = decoder.sizes, decoder.device
        self._on_gpu = device.type == "cuda"
        self._dependent = self._on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)
        width = sizes.heads * sizes.head_dim

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.states = empty(sizes.hidden)
        self.positions, self.past, self.token = (empty(size, dtype=torch.int64) for size in (3, 1, 1))
        self.tokens = empty(cache.capacity, dtype=torch.int64)
        self.logits = empty(sizes.vocabulary)
        self.answers = empty(0 if answer_head is None else answer_head.rows)
        self._cos, self._sin = empty(sizes.head_dim // 2), empty(sizes.head_dim // 2)
        self._qkv = empty(width + 2 * sizes.kv_heads * sizes.head_dim)
        self._mixed = empty(width, dtype=decoder.dtype)
        self._active = empty(sizes.intermediate, dtype=decoder.dtype)
        self._part_out = empty(sizes.heads, SPLITS, sizes.head_dim)
        self._part_top, self._part_sum = (empty(sizes.heads, SPLITS) for _ in range(2))
        self._arrived = empty(sizes.heads, dtype=torch.int32)
        programs = triton.cdiv(sizes.vocabulary, _tile(decoder.head)[0])
        self._best, self._best_row = empty(programs), empty(programs, dtype=torch.int32)
        changed = (self.states, self.positions, self.past, self.token)
        self._forward = Graph(partial(self._launch, greedy=False), device, changed)
        self._answer = Graph(partial(self._launch, greedy=False, answer=True), device, changed)
        self._greedy = Graph(partial(self._launch, greedy=True), device, changed)

    def forward(self) -> None:
        """From `states`, `positions` and `past` to `logits`; the cache grows by one, `past` is the caller's."""
        self._forward.replay()

    def answer(self) -> None:
        """As `forward`, to `answers`."""
        self._answer.replay()

    def greedy(self) -> None:
        """From `token` to the most likely next one, in `token` and `tokens`; `positions` and `past` advance."""
        self._greedy.replay()

    def prepare(self) -> None:
        """Record all."""
        self._forward.prepare()
        self._greedy.prepare()
        if self._answer_head is not None:
            self._answer.prepare()

    def _launch(self, greedy: bool, answer: bool = False) -> None:
        decoder, sizes = self._decoder, self._decoder.sizes
        block = 1024
        begin_kernel[(triton.cdiv(sizes.hidden, block) if greedy else 1,)](
            self.token, decoder.embedding, self.states, self.positions, decoder.rope, self._cos, self._sin,
            sizes.hidden, HALF=sizes.head_dim // 2, EMBED=greedy, BLOCK=block, **self._options(4),
        )  # fmt: skip
        for number, layer in enumerate(decoder.layers):
            self._linear(layer.qkv, self.states, self._qkv, norm=layer.input_norm)
            self._attend(number)
            self._linear(layer.out, self._mixed, self.states, residual=self.states)
            self._linear(layer.gate_up, self.states, self._active, norm=layer.post_norm, glu=True)
            self._linear(layer.down, self._active, self.states, residual=self.states)
        if answer:
            assert self._answer_head is not None
            self._linear(self._answer_head, self.states, self.answers, norm=decoder.norm)
        else:
            self._linear(decoder.head, self.states, self.logits, norm=decoder.norm, best=greedy)
        if greedy:
            pick_kernel[(1,)](
                self._best, self._best_row, len(self._best), self.token, self.tokens, self.positions, self.past,
                BLOCK=4096, **self._options(8),
            )  # fmt: skip

    def _attend(self, number: int) -> None:
        sizes, layer = self._decoder.sizes, self._decoder.layers[number]
        gate_up, down = (each.weight.view(torch.int32) for each in (layer.gate_up, layer.down))
        attention_kernel[(sizes.heads, SPLITS)](
            self._qkv, layer.q_norm, layer.k_norm, self._cos, self._sin,
            self._cache.keys[number], self._cache.values[number], self.past, self._mixed,
            self._part_out, self._part_top, self._part_sum, self._arrived,
            self._cache.capacity, sizes.norm_eps,
            gate_up, gate_up.numel(), down, down.numel(),
            HEADS=sizes.heads, KV_HEADS=sizes.kv_heads, HALF=sizes.head_dim // 2,
            QK_NORM=layer.q_norm is not None, SPLITS=SPLITS, SHORTEST=SHORTEST,
            TILE=ATTENTION_TILE, ASM=self._on_gpu, **self._options(ATTENTION_WARPS),
        )  # fmt: skip

    def _linear(
        self,
        layer: PackedLinear,
        inputs: torch.Tensor,
        out: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        glu: bool = False,
        best: bool = False,
    ) -> None:
        rows = layer.rows // 2 if glu else layer.rows
        block_rows, warps, thread_words = _tile(layer)
        words = int(layer.weight.shape[2])
        linear_kernel[(triton.cdiv(rows, block_rows),)](
            inputs, norm, layer.weight, layer.scales, layer.zeros, layer.bias, residual, out,
            self._best, self._best_row, rows, self._decoder.sizes.norm_eps,
            GROUPS=int(layer.weight.shape[1]), GROUP=layer.group, WORDS=words, BITS=layer.bits, ZERO=zero_of(layer),
            NORM=norm is not None, GLU=glu, BIAS=layer.bias is not None, RESIDUAL=residual is not None, BEST=best,
            BLOCK_ROWS=block_rows, BLOCK_GROUPS=max(1, 32 * thread_words * warps // words),
            ASM=self._on_gpu, **self._options(warps),
        )  # fmt: skip

    def _options(self, warps: int) -> dict[str, int | bool]:
        if not self._on_gpu:
            return {"PDL": False}
        return {"PDL": self._dependent, "launch_pdl": self._dependent, "num_warps": warps}


def dequantize(layer: PackedLinear, dtype: torch.dtype) -> torch.Tensor:
    """What `PackedLinear.dense` computes, in one pass over the weight."""
    if layer.scales is None:
        return layer.dense(dtype)
    dense = torch.empty(layer.rows, layer.columns, dtype=dtype, device=layer.weight.device)
    groups, block = layer.scales.numel(), 64
    dequantize_kernel[(triton.cdiv(groups, block),)](
        layer.weight, layer.scales, layer.zeros, dense,
        GROUP=layer.group, WORDS=int(layer.weight.shape[2]), BITS=layer.bits, ZERO=zero_of(layer), BLOCK=block,
        groups=groups,
    )  # fmt: skip
    return dense


def zero_of(layer: PackedLinear) -> int:
    """A layer's one zero point, or -1 where each group has its own."""
    return layer.zero if layer.zeros is None else -1


def _tile(layer: PackedLinear) -> tuple[int, int, int]:
    """Rows and warps of a program, and a thread's words of a row: the fastest of those tried on an H200.

    They were tried with the layers of a 1.7B decoder, a row of which is then read at once by the program's threads.
    What a thread reads of the input serves all rows; more rows need more registers than there are, and fewer make more
    programs for small layers.
    """
    if layer.scales is None:
        return 16, 1, 4
    words = int(layer.weight.shape[1] * layer.weight.shape[2])
    warps = min(8, max(1, triton.next_power_of_2(words) // 128))
    return (16, 2 * warps, 2) if warps < 4 and layer.rows <= HEAD_ROWS else (16, warps, 4)
