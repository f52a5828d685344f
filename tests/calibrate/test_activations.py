"""Where activations rest, and that they come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from edgetune_calibrate.activations import Activations


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_from_files_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    kept = Activations(room=0, folder=tmp_path / "files")
    values = torch.randint(0, 2, (3, 5000), generator=torch.Generator().manual_seed(0)).to(dtype)
    kept["a"] = values.T[::2]  # no block of memory
    found = kept.get("a")
    assert found.dtype == dtype
    assert torch.equal(found, values.T[::2])
    assert size_of(tmp_path / "files") == found.nbytes == kept.in_files


def test_containers_keep_their_types(tmp_path: Path) -> None:
    kept = Activations(room=0, folder=tmp_path / "files")
    large = torch.arange(10_000.0)
    output = BaseModelOutput(last_hidden_state=large, hidden_states=(large + 1, large + 2))
    kept["args"] = ((large, None, 3), {"out": output, "list": [large]})
    (first, nothing, number), named = kept.get("args")
    assert nothing is None
    assert number == 3
    assert isinstance(named["out"], BaseModelOutput)
    assert isinstance(named["list"], list)
    assert torch.equal(first, large)
    assert named["out"].hidden_states is not None
    assert torch.equal(named["out"].hidden_states[1], large + 2)


def test_memory_is_used_up_to_the_limit_and_given_back(tmp_path: Path) -> None:
    folder, values = tmp_path / "files", torch.ones(10_000)
    kept = Activations(room=2 * values.nbytes, folder=folder)
    for number in range(3):
        kept[number] = values * number
    assert (kept.in_memory, kept.in_files) == (2 * values.nbytes, values.nbytes)
    assert size_of(folder) == values.nbytes
    kept[2] = values * 5
    assert size_of(folder) == values.nbytes
    kept.drop(0)
    kept[2] = values * 7
    assert (kept.in_memory, size_of(folder)) == (2 * values.nbytes, 0)
    assert [float(kept.get(number)[0]) for number in (1, 2)] == [1, 7]
    assert 0 not in kept
    kept[3] = values
    kept.close()
    assert not folder.exists()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    Activations(room=0, folder=folder)["a"] = torch.ones(10_000)
    assert size_of(folder) == 40_000
    Activations(room=0, folder=folder)
    assert not folder.exists()
