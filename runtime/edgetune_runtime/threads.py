"""How many CPU threads a model is run with: what the machine has, what is taken by default, what is refused."""

from __future__ import annotations

import os
from typing import Any

from edgetune_runtime.errors import InputError

THREADS_PER_CORE = 4
"""More threads than this for each usable core only wait for each other: an engine that spins them stops the machine."""


def usable_cores() -> int:
    """Number of CPU cores this process may run on, which an affinity mask or a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: Any) -> int | None:
    """Return a number of threads that makes sense on this machine; None leaves the choice to the engine.

    Raises:
        InputError: no whole number, less than 1, or more than `THREADS_PER_CORE` for each usable core.
    """
    if threads is None:
        return None
    most = THREADS_PER_CORE * usable_cores()
    if not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads must be a whole number of at least 1, not {threads!r}")
    if threads > most:
        cores = f"{usable_cores()} usable core{'s' if usable_cores() != 1 else ''}"
        raise InputError(
            f"{threads} threads: at most {most} on this machine, {THREADS_PER_CORE} for each of its {cores}",
            hint="all usable cores are taken where no number is given",
        )
    return threads


def measured_threads(device: str, threads: int | None) -> int | None:
    """Return the threads that a measurement uses: those asked for, else all usable cores on a CPU.

    On a GPU None leaves the choice to the engine, for some engines take no number of threads.

    Raises:
        InputError: as `check_threads`.
    """
    if threads is None and device == "cpu":
        return usable_cores()
    return check_threads(threads)
