"""What a decoder has read of earlier pictures, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict

from edgetune_runtime.backends.values import Saved


class PrefixCache:
    """The beginnings of sequences by picture; the one that was used longest ago goes first.

    Examples:
        >>> import numpy as np
        >>> from edgetune_runtime.backends.values import Saved
        >>> from edgetune_runtime.prefixes import PrefixCache
        >>> cache = PrefixCache(1000)
        >>> for name in ("a", "b", "c"):
        ...     cache.put(name, Saved(10, (np.zeros(100, np.float32),)))
        >>> cache.take("a") is None, cache.take("b").length, cache.take("b") is None
        (True, 10, True)

    Args:
        limit: bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, Saved] = OrderedDict()

    def put(self, key: str, saved: Saved | None) -> None:
        """Keep a beginning, unless it is None or larger than all that may be kept."""
        if saved is None or saved.nbytes > self.limit:
            return
        self._kept[key] = saved
        while sum(each.nbytes for each in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)

    def take(self, key: str) -> Saved | None:
        """Take a beginning out: while an engine has it, it is kept there."""
        return self._kept.pop(key, None)

    def clear(self) -> None:
        """Drop all."""
        self._kept.clear()
