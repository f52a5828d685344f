"""A model whose weights stay in files is calibrated as a loaded one, each block read once and dropped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import AutoConfig

from calibrate.test_calibrate import command, weights_of
from calibrate.walks import load, picture_batches, walk
from edgetune.cli import cli
from edgetune_calibrate.activations import Activations
from edgetune_calibrate.quantize import DecoderSettings
from edgetune_calibrate.solve import SolveSettings
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.streaming import FileTensors, StreamedModel
from edgetune_runtime.manifest import sha256_tree

HEAD8 = SolveSettings(method="rtn", bits=8, group_size=32)


class Counted(FileTensors):
    """Tensors that count how often each is read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reads: Counter[str] = Counter()

    def read(self, name: str) -> Tensor:
        """As always, noted."""
        self.reads[name] += 1
        return super().read(name)


@pytest.mark.parametrize("method", ["rtn", "awq"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_every_layer_is_solved_as_in_a_loaded_model(
    family: str, method: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(family)
    source, before = HubCheckpoint.open(folder), sha256_tree(folder)
    model = load(folder)
    batches = picture_batches(model)
    settings = DecoderSettings(SolveSettings(method=method, group_size=32), head=HEAD8)
    blocks, groups = walk(model, source.modules, batches, settings)

    tensors = Counted(folder, source.modules)
    streamed = StreamedModel(AutoConfig.from_pretrained(folder), tensors, source.modules)
    tensors.reads.clear()
    kept = Activations(room=0, folder=tmp_path / "activations")
    ours, found = walk(streamed.model, source.modules, batches, settings, held=streamed.loaded, kept=kept)
    for group, other in zip(groups, found, strict=True):
        assert torch.equal(group.hessian, other.hessian), group.names
        assert group.cross is not None
        assert other.cross is not None
        assert torch.equal(group.cross, other.cross), group.names
    for block, other_block in zip(blocks, ours, strict=True):
        assert all((block.weights[name].codes == one.codes).all() for name, one in other_block.weights.items())
    read = {name: count for name, count in tensors.reads.items() if ".layers." in name or ".blocks." in name}
    assert set(read.values()) == {1}
    assert tensors.reads["lm_head.weight"] <= 1  # none where it is tied
    decoder = streamed.model.get_submodule(source.modules.blocks)
    assert len(read) >= len(list(decoder.parameters()))
    assert all(parameter.is_meta for parameter in decoder.parameters())
    assert kept.in_files > 0
    assert sha256_tree(folder) == before  # what was mapped was changed in memory only


def test_a_limit_of_memory_changes_no_byte(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    """Below what a block needs it is refused with what would do; there, activations rest in files."""

    def run(*more: str, name: str = "set") -> Any:
        return CliRunner().invoke(cli, ["calibrate", *command(qwen3_vl, data, tmp_path / name, *more)])

    refused = run("--memory-gb", "0.1")
    assert refused.exit_code == 2
    assert "error: --memory-gb: 0.1 GB, and solving one block of this model takes " in refused.stderr
    least = refused.stderr.split("give --memory-gb ")[1].split()[0]
    done = run("--memory-gb", least)
    assert done.exit_code == 0, done.output
    assert run(name="other").exit_code == 0
    assert weights_of(tmp_path / "set") == weights_of(tmp_path / "other")
    assert "unchanged, nothing to do" in run("--memory-gb", "3").stdout
