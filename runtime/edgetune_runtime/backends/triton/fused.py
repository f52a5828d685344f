"""All kernel passes over one cache: a step for one token, and chunks for several, recorded ahead where known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from edgetune_runtime.backends.triton.chunk import SMALL, Chunk, chunk_size
from edgetune_runtime.backends.triton.graph import new_pool
from edgetune_runtime.backends.triton.model import Cache, Decoder
from edgetune_runtime.backends.triton.packing import DENSE_GROUP, PackedLinear, dense
from edgetune_runtime.backends.triton.step import Step, dequantize

RECORDED = 8
"""Chunks that are kept besides those of `SMALL`, those used last: one a size of prompt."""


UNPACKED_SHARE = 0.25
"""Of the free memory: what a second copy of the blocks' weights may take, unpacked into 16 bits. It costs four times
the packed one, and spares a pass over several tokens from unpacking them again."""


def unpacked(decoder: Decoder) -> Decoder:
    """The decoder that passes over several tokens read: with weights unpacked if memory allows, else the same."""
    packed = [layer for layer in decoder.products if layer.scales is not None]
    size = sum(layer.rows * layer.columns for layer in packed) * decoder.dtype.itemsize
    if any(layer.columns % DENSE_GROUP for layer in packed):
        return decoder
    if decoder.device.type != "cuda" or size > torch.cuda.mem_get_info(decoder.device)[0] * UNPACKED_SHARE:
        return decoder
    products = (
        layer if layer.scales is None else dense(dequantize(layer, decoder.dtype), layer.bias)
        for layer in decoder.products
    )
    return decoder.with_products(products)


class Fused:
    """What a GPU runs in place of `model.forward`.

    Args:
        decoder: the model.
        several: what passes over several tokens read: the same, or what `unpacked` makes of it.
        cache: that all passes write.
        deepstack: after how many layers features of pictures are added.
        answer_head: some outputs of the decoder's head, or None.

    Attributes:
        step: for one token.
    """

    def __init__(
        self,
        decoder: Decoder,
        several: Decoder,
        cache: Cache,
        deepstack: int,
        answer_head: PackedLinear | None = None,
    ) -> None:
        self._decoder, self._several, self._cache, self._deepstack = decoder, several, cache, deepstack
        self._pool = new_pool(decoder.device)
        self._answer_head = answer_head
        self.step = Step(decoder, cache, answer_head)
        self._small = {size: Chunk(several, cache, size, branches=True, pool=self._pool) for size in SMALL}
        self._chunks: OrderedDict[tuple[int, bool, bool], Chunk] = OrderedDict()

    def prepare(self) -> None:
        """Record what every answer needs. Chunks of pictures are recorded when their size is known, at the first."""
        self.step.prepare()
        for chunk in self._small.values():
            chunk.prepare()
        for head in (self._decoder.head, self._answer_head):
            if head is not None:
                self._small[SMALL[0]].logits(head, [0])

    def forward(
        self,
        past: int,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        deepstack: Sequence[torch.Tensor] = (),
        *,
        at: Sequence[int] = (-1,),
        sees: torch.Tensor | None = None,
        answers: bool = False,
    ) -> torch.Tensor:
        """As `model.forward`, of `answer_head` with `answers`.

        Tensors are on the host or the device, logits on the device until the next call.
        """
        if len(embeddings) == 1 and not deepstack and sees is None:
            step = self.step
            step.states.copy_(embeddings[0])
            step.positions.copy_(positions[:, 0])
            step.past.fill_(past)
            if answers:
                step.answer()
            else:
                step.forward()
            return (step.answers if answers else step.logits).expand(len(at), -1)
        chunk = self._chunk(chunk_size(len(embeddings)), deepstack=bool(deepstack), branches=sees is not None)
        chunk.read(past, embeddings, positions, deepstack, sees)
        head = self._answer_head if answers else self._decoder.head
        assert head is not None
        return chunk.logits(head, [place % len(embeddings) for place in at])

    def _chunk(self, size: int, *, deepstack: bool, branches: bool) -> Chunk:
        if size in self._small and not deepstack:
            return self._small[size]
        key = size, deepstack, branches
        if key not in self._chunks:
            layers = self._deepstack if deepstack else 0
            self._chunks[key] = Chunk(self._several, self._cache, size, layers, branches=branches, pool=self._pool)
            while len(self._chunks) > RECORDED:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(key)
        return self._chunks[key]
