"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

_M_MMAP_THRESHOLD = -3
"""Parameter of glibc's `mallopt`."""
_THRESHOLD = 128 << 10
"""Its default value, in bytes."""
_MADV_DONTNEED = 4
"""Advice to `madvise`: take the pages away; they come back from the file when they are read."""
_NOT_THERE, _OF_THE_FILE = 0b000, 0b101
"""What the highest three bits of proc(5)'s pagemap say of a page: present, in swap, of a file."""


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


def let_go_of_mapped(files: Collection[Path]) -> None:
    """Take what is in memory of mapped files from this process; what is read again comes back from them.

    A mapping that was written to is left as it is, for it holds more than the file does. On systems other than Linux,
    and where it hides what is mapped, nothing is done.
    """
    if sys.platform != "linux":
        return
    wanted, page = {os.fsencode(file.resolve()) for file in files}, os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/self/maps", "rb") as maps, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for line in maps:
                place, *_, path = line.rstrip(b"\n").split(maxsplit=5)
                if path not in wanted:
                    continue
                start, end = (int(side, 16) for side in place.split(b"-"))
                told = os.pread(pagemap.fileno(), (end - start) // page * 8, start // page * 8)
                kinds = np.unique(np.frombuffer(told, np.uint64) >> np.uint64(61)).tolist()
                if _OF_THE_FILE in kinds and not set(kinds) - {_NOT_THERE, _OF_THE_FILE}:
                    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
    except OSError:
        return
