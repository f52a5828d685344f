"""safetensors files piece by piece: one is read and written without ever being in memory.

The format (https://huggingface.co/docs/safetensors): the length of the header, 8 bytes; the header, a JSON object of
each tensor's dtype, shape and offsets; the tensors' bytes. `safetensors` itself maps a whole file, whose pages count as
this process's memory once they were read, and it writes only what is in memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

PIECE = 64 << 20
"""How many bytes are held at a time, unless one row is larger."""

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
}
"""torch's names of the format's dtypes, in the format's order, which is from small to large."""


@dataclass(frozen=True)
class TensorLayout:
    """A tensor in a file, without its values.

    Attributes:
        dtype: the format's name for it, such as "BF16".
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def like(cls, tensor: torch.Tensor) -> TensorLayout:
        """Return the layout of a tensor in memory."""
        name = str(tensor.dtype).removeprefix("torch.")
        return cls(next(ours for ours, theirs in _TORCH.items() if theirs == name), tuple(tensor.shape))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        import torch

        dtype: torch.dtype = getattr(torch, _TORCH[self.dtype])
        return dtype

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return int(self.torch_dtype.itemsize)

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.item_bytes

    def row_slices(self, limit: int = PIECE) -> Iterator[tuple[int, int]]:
        """Return bounds (first, behind the last) of rows that together stay within `limit` bytes."""
        rows = self.shape[0] if self.shape else 1
        step = max(1, limit * rows // max(1, self.bytes))
        for first in range(0, rows, step):
            yield first, min(first + step, rows)


class TensorFile:
    """A safetensors file, of which tensors are read when they are asked for.

    Args:
        path: the file; it has to be a sound one, which `edgetune_core.checkpoint.tensor_shapes` makes sure of.

    Attributes:
        path: as given.
        layouts: each tensor by its name, in the file's order.
        metadata: the texts in the header, or None.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        self.path = path
        self.metadata: dict[str, str] | None = header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self.layouts = {name: TensorLayout(entry["dtype"], tuple(entry["shape"])) for name, entry in entries}
        self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in entries}

    def pieces(self, name: str) -> Iterator[Bytes]:
        """Return the bytes of a tensor as they are in the file, at most `PIECE` at a time."""
        left = self.layouts[name].bytes
        with self.path.open("rb") as file:
            file.seek(self._starts[name])
            while left:
                piece = np.fromfile(file, np.uint8, min(left, PIECE))
                left -= len(piece)
                yield piece

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a tensor, in its own dtype or converted while it is read, so that it is not in memory in both."""
        import torch

        layout = self.layouts[name]
        result = torch.empty(layout.shape, dtype=dtype or layout.torch_dtype)
        flat, start = result.view(-1), 0
        for piece in self.pieces(name):  # PIECE is a multiple of every dtype's size
            values = torch.from_numpy(piece).view(layout.torch_dtype)
            flat[start : start + len(values)].copy_(values)
            start += len(values)
        return result


def raw(tensor: torch.Tensor) -> Bytes:
    """Return the bytes of a tensor, which share its memory where it is contiguous."""
    import torch

    array: Bytes = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return array


def file_order(layouts: Mapping[str, TensorLayout]) -> dict[str, TensorLayout]:
    """Return the tensors in the order that safetensors writes: large dtypes first, which aligns all, then by name."""
    rank = list(_TORCH)
    return dict(sorted(layouts.items(), key=lambda item: (-rank.index(item[1].dtype), item[0])))


def write_tensors(
    path: Path,
    layouts: Mapping[str, TensorLayout],
    pieces: Callable[[str], Iterable[Bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file: its bytes are those of `safetensors.torch.save_file`.

    Args:
        path: the file; an existing one is replaced.
        layouts: the tensors.
        pieces: returns the bytes of a tensor, in order; called once for each name, in the file's order.
        metadata: texts for the header.

    Raises:
        ValueError: the pieces of a tensor are not as many bytes as its layout says.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    ordered, start = file_order(layouts), 0
    for name, layout in ordered.items():
        header[name] = {"dtype": layout.dtype, "shape": layout.shape, "data_offsets": (start, start + layout.bytes)}
        start += layout.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, layout in ordered.items():
            written = 0
            for piece in pieces(name):
                file.write(piece.data)
                written += piece.nbytes
            if written != layout.bytes:
                raise ValueError(f"{path}: {name} has {written} bytes, its layout {layout.bytes}")


def write_sharded(
    folder: Path,
    layouts: Mapping[str, TensorLayout],
    pieces: Callable[[str], Iterable[Bytes]],
    limit: int,
) -> None:
    """Write a checkpoint's weights as the hub has them: one file, or shards with an index.

    Args:
        folder: an existing folder.
        layouts: the tensors, in the order in which they fill the shards.
        pieces: as for `write_tensors`.
        limit: bytes of a shard, which only a single larger tensor exceeds.
    """
    shards: list[dict[str, TensorLayout]] = [{}]
    held = 0
    for name, layout in layouts.items():
        if shards[-1] and held + layout.bytes > limit:
            shards.append({})
            held = 0
        shards[-1][name] = layout
        held += layout.bytes
    count = len(shards)
    names = [
        f"model-{i:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for i in range(1, count + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard, pieces, {"format": "pt"})
    if count > 1:
        index = {
            "metadata": {"total_size": sum(layout.bytes for layout in layouts.values())},
            "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in sorted(shard)},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
