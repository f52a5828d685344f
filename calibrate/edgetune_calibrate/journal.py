"""What a calibration has finished, kept on disk block by block so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from edgetune_calibrate.quantize import SolvedBlock
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.quant.weightset import HEAD, WeightSet, write_block

_NAME = ".journal.jsonl"


class Journal:
    """The finished blocks of one calibration in its work folder.

    A line names a block's file and its sha256, and is written after the file is on disk. Lines from the first one that
    is torn, or whose file is not what it says, count for nothing; so does a journal of another key.

    Args:
        folder: the work folder; block files are written there.
        key: what the result depends on.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._path = folder, folder / _NAME
        self.entries: list[dict[str, Any]] = []
        if self._path.is_file():
            self.entries = list(self._intact(self._path.read_bytes().split(b"\n")[:-1], key))
        lines = [{"key": key}, *self.entries]
        self._write("w", "".join(json.dumps(line) + "\n" for line in lines))

    def finished(self) -> list[SolvedBlock]:
        """Read the finished blocks back."""
        blocks = []
        for index, entry in enumerate(self.entries):
            fields = {"linears": entry["linears"], "overrides": entry["overrides"]}
            part = WeightSet(self._folder, {"result": {"weightset": fields}})
            weights = {name: part.weight(name) for name in part.names}
            overrides = {name: part.override(name) for name in part.overrides}
            blocks.append(SolvedBlock(index, weights, overrides, entry["report"]))
        return blocks

    def add(self, block: SolvedBlock) -> None:
        """Write a solved block and note it."""
        file = "head.safetensors" if HEAD in block.weights else f"blocks/{block.index:03d}.safetensors"
        entries = write_block(self._folder, file, block.weights, block.overrides)
        path = self._folder / file
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        entry = {"file": file, "sha256": sha256_file(path), **entries, "report": block.report}
        self.entries.append(entry)
        self._write("a", json.dumps(entry) + "\n")

    def close(self) -> None:
        """Remove the journal: the folder holds a whole weight set."""
        self._path.unlink()

    def _intact(self, lines: list[bytes], key: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if number == 0:
                if entry != {"key": key}:
                    break
                continue
            path = self._folder / entry["file"]
            if not path.is_file() or sha256_file(path) != entry["sha256"]:
                break
            entries.append(entry)
        return entries

    def _write(self, mode: str, text: str) -> None:
        with self._path.open(mode, encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
