"""Several processes train as one: with `torchrun`, and with the configs for `accelerate launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders import REPOSITORY
from train.test_training import QUICK, trained

CONFIGS = REPOSITORY / "examples" / "accelerate"


def launch(
    launcher: list[str], checkpoint: Path, data: Path, output: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    paths = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "train", *paths, *QUICK, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sharded_packs_train_as_those_of_one_process(qwen3_vl: Path, data: Path, val: Path, tmp_path: Path) -> None:
    """FSDP2 over gloo: each of two ranks takes one of the two packs that one process adds up."""
    options = ["--epochs", "3", "--learning-rate", "0.001", "--pack", "200", "--val", str(val), "--val-limit", "3"]
    one = trained(qwen3_vl, data, tmp_path / "one", *options, "--accumulate", "2")["result"]
    assert one["packing"]["packs_per_epoch"] % 2 == 0
    config = ["--config_file", str(CONFIGS / "fsdp2.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
    program = str(Path(__file__).with_name("sharded_on_cpu.py"))
    launcher = ["accelerate.commands.launch", *config, program]
    done = launch(launcher, qwen3_vl, data, tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "manifest.json").read_text())["result"]
    assert two["parallel"] == {"processes": 2, "kind": "fsdp"}
    assert two["packing"] == one["packing"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert [set(row) for row in two["validation"]] == [{"epoch", "loss"}] * 3  # by loss alone
    # Three records do not divide by two; the loss of a pass over them is that of a few more.
    assert two["validation"][-1]["loss"] == pytest.approx(one["validation"][-1]["loss"], rel=0.05)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do what this refuses")
def test_sharding_that_does_not_happen_is_an_error(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "edgetune"]
    done = launch(launcher, qwen3_vl, data, tmp_path / "out", "--trainer-arg", "fsdp=full_shard auto_wrap")
    assert "FSDP or DeepSpeed was asked for, but accelerate runs" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", ["ddp.yaml", "fsdp2.yaml", "zero3.yaml"])
def test_accelerate_accepts_each_config(config: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(CONFIGS / config))
    assert loaded.num_processes == 2
    assert (config, str(loaded.distributed_type.value)) in {
        ("ddp.yaml", "MULTI_GPU"),
        ("fsdp2.yaml", "FSDP"),
        ("zero3.yaml", "DEEPSPEED"),
    }
