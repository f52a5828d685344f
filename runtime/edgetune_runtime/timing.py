"""What one answer and one process cost: stage times, cold start, peak memory, and how busy the machine was.

Everything here reads the operating system directly (`/proc` on Linux), so a robot needs no extra package to be
measured. All times are seconds, all sizes are bytes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgetune_runtime.gpu import Gpu
from edgetune_runtime.typed_json import Count, Seconds

STAGES = ("preprocess", "vision", "prefill", "decode", "total")
"""The stages of one answer, in the order in which they run; `total` is wall time from image to text."""

_IMPORTED = time.time()


@dataclass(frozen=True)
class Timings:
    """Wall seconds of each stage of one answer, and the number of tokens it generated.

    `preprocess` is image loading, resizing and tokenisation; `prefill` produces the first token, so `decode` covers
    `tokens - 1` steps. `known` counts the prompt's tokens that the engine had read for an earlier phrase about the same
    picture, and that `prefill` so does not read. `passes` is how often the decoder was run for the answer, the rest of
    the prompt behind the picture included: fewer times than there are tokens where several were known ahead. `total` is
    measured on its own and may exceed the sum by the loop's own overhead.
    """

    preprocess: Seconds
    vision: Seconds
    prefill: Seconds
    decode: Seconds
    total: Seconds
    tokens: Count
    known: Count = 0
    passes: Count = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed, or None when the answer had no decode step."""
        return (self.tokens - 1) / self.decode if self.tokens > 1 and self.decode > 0 else None

    def shared(self, tokens: Sequence[int], known: int) -> list[Timings]:
        """What each of several answers cost that were written side by side: these times in equal parts.

        The first has all of the picture's part.

        Args:
            tokens: how many each of them has.
            known: the picture's part of a prompt in tokens, which the others need not read.
        """
        count = len(tokens)
        first = self.preprocess + self.vision
        rest = replace(self, preprocess=0.0, vision=0.0, prefill=self.prefill / count, decode=self.decode / count)
        rest = replace(rest, total=(self.total - first) / count)
        found = [replace(rest, tokens=number, known=known) for number in tokens]
        whole = replace(self, prefill=rest.prefill, decode=rest.decode, total=rest.total + first)
        found[0] = replace(whole, tokens=tokens[0])
        return found

    def to_dict(self) -> dict[str, float]:
        """Plain numbers by field name, ready for JSON."""
        return asdict(self)


def process_age() -> float:
    """Seconds since this process was started by the operating system, interpreter start-up included.

    Linux counts process starts in clock ticks (10 ms). Elsewhere the age is counted from the import of this module,
    which leaves the interpreter's own start out.
    """
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.time() - _IMPORTED
    # Field 22 of proc(5); the command name, field 2, may itself hold spaces and parentheses.
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def peak_rss() -> int:
    """Largest resident set of this process so far, in bytes.

    Linux's `VmHWM` belongs to the program that runs now. `getrusage` would do elsewhere, but on Linux it keeps the peak
    of the parent that forked it, and would charge a small worker for a large launcher.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class CpuShare:
    """How much of the machine's CPU other processes took between construction and `others`."""

    def __init__(self) -> None:
        self._start = self._read()

    def others(self) -> float | None:
        """Share (0-1) of all cores' time used by others, a hypervisor included; None where it is unknown."""
        now = self._read()
        if now is None or self._start is None:
            return None
        busy, total, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, busy - own) / total if total > 0 else None

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds of (busy, all, this process's own) CPU time so far."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        # proc(5): user nice system idle iowait irq softirq steal, then guest times that user already includes.
        ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
        tick = os.sysconf("SC_CLK_TCK")
        total = sum(ticks) / tick
        return total - (ticks[3] + ticks[4]) / tick, total, time.process_time()


class GpuMemory:
    """Growth of a GPU's used memory since construction: device-wide, as the driver (NVML) sees it.

    One method for every engine, CUDA context and workspaces included; another process on the same GPU disturbs it.
    Sample after each answer: engines' arenas grow to their peak and stay there.
    """

    def __init__(self) -> None:
        self._gpu = Gpu()
        self._base = self._gpu.used()
        self.peak: int | None = None if self._base is None else 0

    def sample(self) -> None:
        """Look once; `peak` keeps the largest growth in bytes (None without a driver)."""
        used = self._gpu.used()
        if used is not None and self._base is not None and self.peak is not None:
            self.peak = max(self.peak, used - self._base)
