"""The weights beside a graph, mapped for reading, whose pages can be let go of."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

_SINCE = (1, 31)
"""The first version of onnxruntime that is known to read what it is given where it lies; others copy it."""


class MappedWeights:
    """The file of a graph's external data, given to onnxruntime as it lies on disk.

    onnxruntime maps that file by itself, but keeps what it read of it in memory: the scales of quantized products,
    beside the copies that its kernels read, are an eighth of a decoder in blocks of 32. Of a mapping of ours, which
    nobody can take away or write to meanwhile, pages can be let go of at any time.

    It must be kept for as long as a session that it was given to.

    Args:
        graph: path of the graph, beside NAME.data; graphs of one model may share such a file.
    """

    def __init__(self, graph: Path) -> None:
        file = graph.with_name(f"{graph.name}.data")
        self._name = file.name
        self._data: mmap.mmap | None = None
        if sys.platform == "linux" and file.is_file() and file.stat().st_size:
            with file.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def give(self, options: Any, version: str) -> None:
        """Let a session with these `onnxruntime.SessionOptions` read the mapping in place of the file.

        Args:
            options: of the session.
            version: of onnxruntime. One that would copy what it is given maps the file by itself.
        """
        if self._data is not None and tuple(map(int, version.split(".")[:2])) >= _SINCE:
            options.add_external_initializers_from_files_in_memory([self._name], [self._data], [len(self._data)])
            options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")

    def let_go(self) -> None:
        """Take the pages that were read out of this process; what is read again comes back from the file."""
        if self._data is not None:
            self._data.madvise(mmap.MADV_DONTNEED)
