"""Several processes train as one: with `torchrun`, and with the configs for `accelerate launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders import REPOSITORY
from train.conftest import RECORDS, write_records
from train.test_training import QUICK, trained

CONFIGS = REPOSITORY / "examples" / "accelerate"


def launch(
    launcher: list[str], checkpoint: Path, data: Path, output: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    paths = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "train", *paths, *QUICK, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # processes that wait for each other wait for ever
    )


def sharded(config: str, checkpoint: Path, data: Path, output: Path, *options: str) -> dict[str, Any]:
    """Train in two CPU processes that divide the weights; return the manifest's result."""
    options += ("--trainer-arg", "use_cpu=false") if config == "zero3" else ()
    words = ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
    launcher = ["accelerate.commands.launch", *words, str(Path(__file__).with_name("sharded_on_cpu.py"))]
    done = launch(launcher, checkpoint, data, output, *options, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((output / "manifest.json").read_text())["result"]
    assert result["parallel"] == {"processes": 2, "kind": "fsdp" if config == "fsdp2" else "deepspeed"}
    return result


def same_adapter(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("config", ["fsdp2", "zero3"])
def test_sharded_packs_train_as_those_of_one_process(
    qwen3_vl: Path, data: Path, val: Path, tmp_path: Path, config: str
) -> None:
    """Over gloo each of two ranks takes one of the two packs that one process adds up."""
    if config == "zero3":
        pytest.importorskip("deepspeed")
    options = ["--epochs", "3", "--learning-rate", "0.001", "--pack", "200", "--val", str(val), "--val-limit", "3"]
    one = trained(qwen3_vl, data, tmp_path / "one", *options, "--accumulate", "2")["result"]
    assert one["packing"]["packs_per_epoch"] % 2 == 0
    two = sharded(config, qwen3_vl, data, tmp_path / "two", *options)
    assert two["packing"] == one["packing"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert [set(row) for row in two["validation"]] == [{"epoch", "loss"}] * 3  # by loss alone
    # Three records do not divide by two; the loss of a pass over them is that of a few more.
    assert two["validation"][-1]["loss"] == pytest.approx(one["validation"][-1]["loss"], rel=0.05)
    same_adapter(tmp_path / "one", tmp_path / "two")


@pytest.fixture
def mostly_text(tmp_path: Path) -> Path:
    """One record with a picture and three conversations without: at most every other batch has one."""
    said = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    return write_records(tmp_path / "mixed", records=[RECORDS[0], *[{"images": [], "messages": said}] * 3])


ALONE = ["--epochs", "2", "--learning-rate", "0.001", "--batch-size", "1"]


@pytest.mark.parametrize("layout", [[], ["--pack", "100"]])
def test_sharded_batches_without_a_picture_wait_for_nobody(
    qwen3_vl: Path, mostly_text: Path, tmp_path: Path, layout: list[str]
) -> None:
    one = trained(qwen3_vl, mostly_text, tmp_path / "one", *ALONE, *layout, "--accumulate", "2")["result"]
    two = sharded("fsdp2", qwen3_vl, mostly_text, tmp_path / "two", *ALONE, *layout)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    same_adapter(tmp_path / "one", tmp_path / "two")


def test_two_processes_train_a_tower_that_one_of_them_does_not_use(
    qwen3_vl: Path, mostly_text: Path, tmp_path: Path
) -> None:
    # Plain gradient descent: Adam blows rounding up where gradients are tiny, as in a tower that was just adapted.
    options = [*ALONE, "--vision-lora", "--learning-rate", "0.1", "--trainer-arg", "optim=sgd"]
    trained(qwen3_vl, mostly_text, tmp_path / "one", *options, "--accumulate", "2")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgetune"]
    done = launch(launcher, qwen3_vl, mostly_text, tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    same_adapter(tmp_path / "one", tmp_path / "two")
    tower = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 1e-4 for name, tensor in tower.items() if "visual" in name and "lora_B" in name)


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


def test_a_process_that_takes_too_long_writes_its_stacks_and_runs_on(tmp_path: Path) -> None:
    """The script waits for them itself, in a function whose name they must hold."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "def waits_for_stacks():\n    while not Path(sys.argv[1]).read_text():\n        time.sleep(0.05)\n"
        "waits_for_stacks()\n"
    )
    watched = REPOSITORY / "benchmarks" / "studies" / "watched.py"
    words = [sys.executable, str(watched), "0.2", str(tmp_path), str(script), str(tmp_path / "rank3.txt")]
    done = subprocess.run(
        words, env=os.environ | {"RANK": "3"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "in waits_for_stacks" in (tmp_path / "rank3.txt").read_text()
