"""safetensors files piece by piece, against the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune_core import tensor_file
from edgetune_core.tensor_file import TensorFile, TensorLayout, raw, write_sharded, write_tensors

TENSORS = {
    "odd": torch.arange(7, dtype=torch.int8),
    "b.é": torch.randn(5, 3).to(torch.bfloat16),
    "a": torch.randn(40, 33),
    "half": torch.randn(3, 4, 5).half(),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "long": torch.arange(6).reshape(2, 3),
    "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
}
LAYOUTS = {name: TensorLayout.like(tensor) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_written_bytes_are_those_of_the_library(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(TENSORS, tmp_path / "theirs", metadata=metadata)
    write_tensors(tmp_path / "ours", LAYOUTS, lambda name: [raw(TENSORS[name])], metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_are_read_as_the_library_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "PIECE", 64)
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    file = TensorFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.layouts == LAYOUTS
    for name, expected in load_file(path).items():
        assert torch.equal(file.tensor(name).view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))
        assert b"".join(piece.tobytes() for piece in file.pieces(name)) == raw(expected).tobytes()
        if expected.is_floating_point():
            assert torch.equal(file.tensor(name, torch.float32), expected.float())


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, LAYOUTS, lambda name: [raw(TENSORS[name])], limit=200)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert index["weight_map"].keys() == TENSORS.keys()
    for name, file in index["weight_map"].items():
        assert raw(load_file(tmp_path / file)[name]).tobytes() == raw(TENSORS[name]).tobytes()


def test_a_tensor_of_other_bytes_than_its_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd has 6 bytes, its layout 7"):
        write_tensors(tmp_path / "ours", {"odd": LAYOUTS["odd"]}, lambda name: [np.zeros(6, np.uint8)])


def test_rows_cover_a_tensor() -> None:
    layout = TensorLayout("F32", (10, 4))
    assert list(layout.row_slices(3 * 16)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(layout.row_slices(1)) == [(row, row + 1) for row in range(10)]
    assert list(TensorLayout("F32", ()).row_slices()) == [(0, 1)]
