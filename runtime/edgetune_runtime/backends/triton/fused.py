"""All kernel passes over one cache: a step for one token, chunks for several, their graphs recorded ahead where known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from edgetune_runtime.backends.triton.chunk import SMALL, Chunk, chunk_size
from edgetune_runtime.backends.triton.graph import new_pool
from edgetune_runtime.backends.triton.model import Cache, Decoder
from edgetune_runtime.backends.triton.step import Step

RECORDED = 8
"""Chunks that are kept besides those of `SMALL`, those used last: one a size of prompt."""


class Fused:
    """What a GPU runs in place of `model.forward`.

    Args:
        decoder: the model.
        cache: that all passes write.
        deepstack: after how many layers features of pictures are added.

    Attributes:
        step: for one token.
    """

    def __init__(self, decoder: Decoder, cache: Cache, deepstack: int) -> None:
        self._decoder, self._cache, self._deepstack = decoder, cache, deepstack
        self._pool = new_pool(decoder.device)
        self.step = Step(decoder, cache)
        self._small = {size: Chunk(decoder, cache, size, pool=self._pool) for size in SMALL}
        self._chunks: OrderedDict[tuple[int, bool], Chunk] = OrderedDict()

    def prepare(self) -> None:
        """Record what every answer needs. Chunks of pictures follow when their sizes are known, at the first of each."""
        self.step.prepare()
        for chunk in self._small.values():
            chunk.prepare()

    def forward(
        self,
        past: int,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        deepstack: Sequence[torch.Tensor] = (),
        *,
        at: Sequence[int] = (-1,),
    ) -> torch.Tensor:
        """As `model.forward`; tensors are on the host or the device, logits on the device until the next call."""
        if len(embeddings) == 1 and not deepstack:
            self.step.states.copy_(embeddings[0])
            self.step.positions.copy_(positions[:, 0])
            self.step.past.fill_(past)
            self.step.forward()
            return self.step.logits.expand(len(at), -1)
        chunk = self._chunk(chunk_size(len(embeddings)), bool(deepstack))
        chunk.read(past, embeddings, positions, deepstack)
        return chunk.logits([place % len(embeddings) for place in at])

    def _chunk(self, size: int, deepstack: bool) -> Chunk:
        if size in self._small and not deepstack:
            return self._small[size]
        key = size, deepstack
        if key not in self._chunks:
            layers = self._deepstack if deepstack else 0
            self._chunks[key] = Chunk(self._decoder, self._cache, size, layers, pool=self._pool)
            while len(self._chunks) > RECORDED:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(key)
        return self._chunks[key]
