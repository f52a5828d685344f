"""What a calibration keeps of its batches between two uses: in memory up to a limit, in files beyond it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 4096
"""Bytes of tensors that always stay in memory: a file each would be more trouble than they are."""


@dataclass(frozen=True)
class _File:
    """A tensor in a file, of nothing but its values."""

    path: Path
    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def written(cls, path: Path, tensor: Tensor) -> _File:
        with path.open("wb") as stream:
            stream.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return cls(path, tensor.dtype, tensor.shape)

    def read(self) -> Tensor:
        return torch.from_numpy(np.fromfile(self.path, np.uint8)).view(self.dtype).reshape(self.shape)


class Activations:
    """Nested tensors by a key.

    Args:
        device: where those that are in memory rest.
        room: bytes that may rest in memory; None is no limit.
        folder: for the files of those beyond; made when it is needed, with what an earlier run left there gone.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> kept = Activations(room=100_000, folder=Path(folder.name) / "activations")
        >>> kept["hidden", 0] = torch.zeros(1, 8, 2560)
        >>> kept["hidden", 1] = torch.ones(1, 8, 2560)
        >>> kept.in_memory, kept.in_files
        (81920, 81920)
        >>> kept.get(("hidden", 1)).sum().item()
        20480.0
        >>> kept.close()
        >>> folder.cleanup()
    """

    def __init__(
        self, device: torch.device | str = "cpu", *, room: int | None = None, folder: Path | None = None
    ) -> None:
        self._device, self._room, self._folder = torch.device(device), room, folder
        self._values: dict[Hashable, Any] = {}
        self._sizes: dict[Hashable, int] = {}
        self._numbers = itertools.count()
        self.in_memory = self.in_files = 0
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __setitem__(self, key: Hashable, value: Any) -> None:
        """Keep a value, in the place of the one that was kept.

        Raises:
            OSError: the disk is full.
        """
        self.drop(key)
        size = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.nbytes
            return tensor

        changed(value, count)
        fits = self._room is None or self.in_memory + size <= self._room
        self._values[key] = changed(value, lambda one: one.to(self._device) if fits else self._filed(one))
        self._sizes[key] = size if fits else -size
        self._count(self._sizes[key])

    def get(self, key: Hashable, device: torch.device | str | None = None) -> Any:
        """A kept value, its tensors on a device or where they rest, in new containers of the same types."""

        def back(one: Any) -> Any:
            return (one.read() if isinstance(one, _File) else one).to(device or self._device)

        return changed(self._values[key], back)

    def drop(self, key: Hashable) -> None:
        """Keep a value no longer, if there is one."""
        if key not in self._values:
            return

        def unlink(one: Any) -> Any:
            if isinstance(one, _File):
                one.path.unlink()
            return one

        changed(self._values.pop(key), unlink)
        size = self._sizes.pop(key)
        self._count(size, -1)

    def close(self) -> None:
        """Keep nothing any more."""
        self._values, self._sizes = {}, {}
        self.in_memory = self.in_files = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self, size: int, sign: int = 1) -> None:
        self.in_memory += sign * max(size, 0)
        self.in_files += sign * max(-size, 0)

    def _filed(self, tensor: Tensor) -> Tensor | _File:
        if self._folder is None or tensor.nbytes <= SMALL:
            return tensor.to(self._device)
        self._folder.mkdir(exist_ok=True)
        return _File.written(self._folder / f"{next(self._numbers)}.bin", tensor)


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with `change` of its tensors, in new containers of the same types."""
    if isinstance(value, Tensor | _File):
        return change(value)
    if isinstance(value, Mapping):  # plain dicts and the outputs of transformers models
        return type(value)(**{key: changed(item, change) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(changed(item, change) for item in value)
    return value


def moved(value: Any, device: torch.device | str) -> Any:
    """Return nested tensors on a device, in new containers of the same types."""
    return changed(value, lambda one: one.to(device))
