"""Progress within a step, and what a bar tells of it: the memory in use, and the time that it still takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from edgetune_runtime.timing import peak_rss

Tell = Callable[[int, int], object]
"""Told how much of something is done, and how much there is."""


def no_one(done: int, total: int) -> None:
    """Listens to no progress."""


class Step:
    """A step of which parts are done one by one.

    Args:
        name: of the step.

    Attributes:
        began: when, by `time.perf_counter`.

    Examples:
        >>> step = Step("decoder")
        >>> step.told(0, 36).startswith("decoder 1/36, ")
        True
    """

    def __init__(self, name: str) -> None:
        self.name, self.began = name, perf_counter()
        self._before: int | None = None  # parts that an interrupted run had finished

    def told(self, done: int, total: int) -> str:
        """Which part of it is on its way, the memory in use, and how long the rest takes if all parts are alike.

        What is done when this is called first does not count: an interrupted run did it.
        """
        self._before = done if self._before is None else self._before
        now = done - self._before
        seconds = (perf_counter() - self.began) / now * (total - done) if now else None
        left = "" if seconds is None else f", {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        return f"{self.name} {min(done + 1, total)}/{total}, {memory_in_use() / 1e9:.1f} GB{left}"


def memory_in_use() -> int:
    """Bytes that this process has resident now, or the most that it had where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    now = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")]
    return now[0] if now else peak_rss()
