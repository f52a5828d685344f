"""What a calibration has finished, kept on disk block by block so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from edgetune_calibrate.allocate import Choice, Unit
from edgetune_calibrate.quantize import SolvedBlock
from edgetune_core.weightset import HEAD, WeightSet, write_block
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import decode_json
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.quant.blocks import BlockFormat


class _Lines:
    """A file of JSON lines, each on disk before the next step begins; the first is the key that the others hold for.

    Lines from the first one that is torn or not intact count for nothing; so does a file of another key.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self.entries: list[dict[str, Any]] = []
        if path.is_file():
            self.entries = self._read(path.read_bytes().split(b"\n")[:-1], key)
        self._write("w", "".join(json.dumps(line) + "\n" for line in ({"key": key}, *self.entries)))

    def close(self) -> None:
        """Remove the file: what it is about is done."""
        self._path.unlink()

    def _append(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self._write("a", json.dumps(entry) + "\n")

    def _read(self, lines: list[bytes], key: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            try:
                entry = decode_json(line)
            except InputError:
                break
            if number == 0:
                if entry != {"key": key}:
                    break
                continue
            if not self._intact(entry):
                break
            entries.append(entry)
        return entries

    def _intact(self, entry: dict[str, Any]) -> bool:
        return True

    def _write(self, mode: str, text: str) -> None:
        with self._path.open(mode, encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())


class Journal(_Lines):
    """The finished blocks of one calibration in its work folder.

    A line names a block's file and its sha256, and is written after the file is on disk; it counts as long as the file
    is what it says.

    Args:
        folder: the work folder; block files are written there.
        key: what the result depends on.

    Attributes:
        folder: the same.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        super().__init__(folder / ".journal.jsonl", key)

    def finished(self) -> Sequence[SolvedBlock]:
        """Return the blocks that are finished by now; each is read when it is asked for."""
        return _Finished(self.folder, list(self.entries))

    def weights(self) -> WeightSet:
        """Return the finished blocks as one weight set."""
        return _weights(self.folder, self.entries)

    def add(self, block: SolvedBlock) -> None:
        """Write a solved block and note it."""
        file = "head.safetensors" if HEAD in block.weights else f"blocks/{block.index:03d}.safetensors"
        entries = write_block(self.folder, file, block.weights, block.overrides)
        path = self.folder / file
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        self._append({"file": file, "sha256": sha256_file(path), **entries, "report": block.report})

    def _intact(self, entry: dict[str, Any]) -> bool:
        path = self.folder / entry["file"]
        return path.is_file() and sha256_file(path) == str(entry["sha256"])


class _Finished(Sequence[SolvedBlock]):
    def __init__(self, folder: Path, entries: Sequence[dict[str, Any]]) -> None:
        self._folder, self._entries = folder, entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> SolvedBlock: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SolvedBlock]: ...
    def __getitem__(self, index: int | slice) -> SolvedBlock | Sequence[SolvedBlock]:
        if isinstance(index, slice):
            return _Finished(self._folder, self._entries[index])
        entry = self._entries[index]
        part = _weights(self._folder, [entry])
        weights = {name: part.weight(name) for name in part.names}
        overrides = {name: part.override(name) for name in part.overrides}
        return SolvedBlock(index, weights, overrides, entry["report"])


def _weights(folder: Path, entries: Sequence[dict[str, Any]]) -> WeightSet:
    """Return blocks that the journal names as a weight set."""
    fields = {
        kind: {name: told for entry in entries for name, told in entry[kind].items()}
        for kind in ("linears", "overrides")
    }
    return WeightSet(folder, {"result": {"weightset": fields}})


class UnitLog(_Lines):
    """The units of a decoder whose sensitivity is known.

    Args:
        folder: the work folder.
        key: what the measurements depend on.
    """

    def __init__(self, folder: Path, key: str) -> None:
        super().__init__(folder / ".sensitivity.jsonl", key)

    def finished(self) -> list[Unit]:
        """Read the units back."""
        return [
            Unit(
                tuple(entry["names"]),
                tuple(Choice(BlockFormat(*fmt), size, error) for fmt, size, error in entry["choices"]),
            )
            for entry in self.entries
        ]

    def add(self, unit: Unit) -> None:
        """Note a unit."""
        choices = [
            [[one.format.bits, one.format.block, one.format.symmetric], one.size, one.error] for one in unit.choices
        ]
        self._append({"names": list(unit.names), "choices": choices})
