"""Reading ahead: pictures of the next batches are decoded and resized by threads while a batch computes.

Batches come in the same order and are put together in the training process as ever, so the same seed gives the same
adapter. Threads are enough: Pillow and numpy let go of Python's lock while they work, nothing is sent from one process
to another, and nothing is forked beside a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

from edgetune_core.conversation import Sample
from edgetune_train.batch import Collator, Pack

Rows = Sequence[Sample | Pack]
"""What one batch is made of."""

BATCHES = 2
"""How many batches are read ahead at least; their preprocessed pictures are in memory."""


class ReadAhead(Iterator[dict[str, Any]]):
    """The batches of an epoch, put together one by one while the pictures of the next ones are on their way.

    A picture that cannot be read is an error when its own batch is asked for.

    Args:
        rows: what each batch is made of, in order.
        collate: puts one together.
        threads: what decodes.
        batches: how many are read ahead.
    """

    def __init__(self, rows: Iterator[Rows], collate: Collator, threads: Executor, batches: int = BATCHES) -> None:
        self.rows = rows
        self._collate, self._threads, self._batches = collate, threads, batches
        self._waiting: deque[tuple[Rows, object]] = deque()

    def __next__(self) -> dict[str, Any]:
        while len(self._waiting) <= self._batches:
            rows = next(self.rows, None)
            if rows is None:
                break
            begun = self._collate.images.begin(_pictures(rows), self._threads)
            self._waiting.append((rows, begun))
        if not self._waiting:
            raise StopIteration
        rows, begun = self._waiting.popleft()
        batch = self._collate(rows)
        del begun  # held until here: what nobody holds is forgotten
        return batch


def _pictures(rows: Rows) -> list[Any]:
    samples = [sample for row in rows for sample in (row if isinstance(row, tuple) else (row,))]
    return [path for sample in samples for path in sample.images]
