"""Random checkpoints of published shapes: transformers finds every weight, our reader everything else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from builders import REPOSITORY, TINY_MODEL
from edgetune_core.checkpoint import HubCheckpoint

SCRIPT = REPOSITORY / "benchmarks" / "studies" / "shapes.py"


@pytest.fixture(scope="module")
def shapes() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPT.parent))  # as for a script
    spec = importlib.util.spec_from_file_location("shapes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shapes"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


def load(folder: Path) -> Any:
    auto: Any = AutoModelForImageTextToText
    model, report = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.mark.parametrize(
    ("shape", "prefixes"),
    [
        ("small-qwen3-vl", {"model.visual.", "model.language_model."}),
        ("small-qwen2.5-vl", {"visual.", "model.", "lm_head."}),
    ],
)
def test_a_checkpoint_is_whole(shape: str, prefixes: set[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    command = [sys.executable, str(SCRIPT), shape, "--tokenizer", str(TINY_MODEL), "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checkpoint = HubCheckpoint.open(folder, exported=True)
    checkpoint.check_template()
    assert checkpoint.dtype == "bfloat16"
    model = load(folder)
    assert model.dtype == torch.bfloat16
    names = load_file(folder / "model.safetensors")
    assert {prefix for prefix in prefixes for name in names if name.startswith(prefix)} == prefixes
    assert all(any(name.startswith(prefix) for prefix in prefixes) for name in names)
    for name, tensor in names.items():
        if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
            assert (tensor == 1).all(), name
        else:
            ends = name.endswith(("o_proj.weight", "down_proj.weight")) and "visual" not in name
            expected = 0.02 / (4 * model.config.text_config.num_hidden_layers) if ends else 0.02
            assert tensor.float().std().item() == pytest.approx(expected, rel=0.3), name


def test_shards_hold_what_one_file_does(shapes: Any, tmp_path: Path) -> None:
    shape = shapes.SHAPES["small-qwen3-vl"]
    shapes.write_checkpoint(shape, TINY_MODEL, tmp_path / "one")
    shapes.write_checkpoint(shape, TINY_MODEL, tmp_path / "many", shard=200_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    one, many = load(tmp_path / "one").state_dict(), load(tmp_path / "many").state_dict()
    assert all(torch.equal(many[name], tensor) for name, tensor in one.items())
    for name in files:
        tensors = load_file(tmp_path / "many" / name)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 200_000


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [  # as the published checkpoints' pages count them
        ("qwen3-vl-2b", 2_127_532_032),
        ("qwen3-vl-4b", 4_437_815_808),
        ("qwen3-vl-8b", 8_767_123_696),
        ("qwen2.5-vl-3b", 3_754_622_976),
        ("qwen2.5-vl-7b", 8_292_166_656),
    ],
)
def test_sizes_are_the_published_ones(shapes: Any, shape: str, parameters: int) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(shapes.config_of(shapes.SHAPES[shape]))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
