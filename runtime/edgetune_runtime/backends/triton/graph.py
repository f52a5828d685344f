"""Work that is recorded as a CUDA graph and replayed; elsewhere, as under Triton's interpreter, it is simply done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

Pool = Any
"""Memory of recorded work, by torch's handle."""


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one, on which kernels are launched and work is recorded; nothing elsewhere."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def new_pool(device: torch.device) -> Pool | None:
    """A pool on a CUDA device, or None elsewhere."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class Graph:
    """One piece of work, recorded at its first replay or by `prepare`.

    Args:
        launch: does the work, on the current stream.
        device: where.
        keep: tensors that the work changes and that recording, which does it once, must leave as they are.
        pool: memory for what the work allocates, shared with other work that never runs at the same time.
    """

    def __init__(
        self,
        launch: Callable[[], None],
        device: torch.device,
        keep: Sequence[torch.Tensor] = (),
        pool: Pool | None = None,
    ) -> None:
        self._launch, self._device, self._keep, self._pool = launch, device, keep, pool
        self._graph: torch.cuda.CUDAGraph | None = None

    def replay(self) -> None:
        """Do the work."""
        if self._device.type != "cuda":
            self._launch()
            return
        self.prepare()
        assert self._graph is not None
        self._graph.replay()

    def prepare(self) -> None:
        """Record the work if it is not."""
        if self._device.type != "cuda" or self._graph is not None:
            return
        kept = [tensor.clone() for tensor in self._keep]
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # compiles kernels and readies libraries, which a capture cannot
            self._launch()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._launch()
        self._graph = graph
        for tensor, before in zip(self._keep, kept, strict=True):
            tensor.copy_(before)
