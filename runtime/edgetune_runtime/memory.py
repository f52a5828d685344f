"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD = -3
"""Parameter of glibc's `mallopt`."""
_THRESHOLD = 128 << 10
"""Its default value, in bytes."""


def return_freed_memory() -> None:
    """Make the C library give back what was freed, now and, in large blocks, from now on, in the whole process.

    glibc takes blocks of more than 128 KiB from the system one by one, but moves that line up, to 32 MiB at most, with
    every larger block that it sees freed. Activations then lie in its heap, where what is freed between blocks that
    stay is kept. Setting the line ends its moving. One that the environment sets (`MALLOC_MMAP_THRESHOLD_`,
    `GLIBC_TUNABLES`) is the user's choice and stays; with other C libraries nothing is done.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    if not os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}:
        library.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
    library.malloc_trim(0)
