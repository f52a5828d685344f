"""Pages of mapped files are let go of where nothing is lost with them."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from edgetune_runtime.memory import let_go_of_mapped

SIZE = 4 << 20


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory, by the system's account."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = [next(lines) for line in lines if line.endswith(f" {path}") for _ in range(4)]
    return sum(int(line.split()[1]) * 1024 for line in found if line.startswith("Rss:"))


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are read from /proc")
def test_pages_go_and_come_back_but_not_those_of_a_mapping_that_was_written_to(tmp_path: Path) -> None:
    content = bytes(range(256)) * (SIZE // 256)
    paths = [tmp_path / name for name in ("read", "written with a space", "other")]
    maps = []
    for path in paths:
        path.write_bytes(content)
        with path.open("rb") as stream:  # as onnxruntime maps them
            private = mmap.mmap(stream.fileno(), SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        maps.append(private)
    maps[1][SIZE // 2] = 255
    changed = bytearray(content)
    changed[SIZE // 2] = 255
    expected = [content, changed, content]
    assert [private[:] for private in maps] == expected
    assert [resident(path) for path in paths] == [SIZE] * 3
    link = tmp_path / "link"
    link.symlink_to("read")
    let_go_of_mapped([link, paths[1], tmp_path / "gone"])
    assert [resident(path) for path in paths] == [0, SIZE, SIZE]
    assert [private[:] for private in maps] == expected
    assert resident(paths[0]) == SIZE
