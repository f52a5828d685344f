"""Training on several GPUs beside one: data parallel, FSDP2 and, where it is installed, DeepSpeed ZeRO-3.

Usage, from the root of the repository:

    python benchmarks/studies/train_multi_gpu.py [--gpus 2] [--shape 2b] [--records 192] [--pack 4096] [--timeout 600]

The same command that a user gives, `accelerate launch --config_file examples/accelerate/X.yaml -m edgetune train`, on
Qwen3-VL-2B's sizes with random weights. Each run makes the same optimizer steps: what N GPUs do at once, one adds up.
Losses must agree to what other packs and bfloat16's rounding make of them; the time is that of the training alone.
A run that exceeds the timeout is ended, after all its processes have written where they were.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from train_world import SHAPES, random_checkpoint, write_records

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


def run(name: str, gpus: int, command: list[str], folder: Path, timeout: float) -> dict[str, Any]:
    """Train once and return a row of the table, or why there is none.

    Args:
        name: "one", or the name of a config for accelerate.
        gpus: how many the others use.
        command: of `edgetune`, without the output.
        folder: where the output goes.
        timeout: seconds.
    """
    launcher = [sys.executable, "-m"]
    if name == "one":
        words = [*launcher, *command, "--accumulate", str(gpus)]
    else:
        config = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", str(gpus)]
        words = [*launcher, "accelerate.commands.launch", *config, "-m", *command]
    devices = "0" if name == "one" else ",".join(map(str, range(gpus)))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": devices, "PYTHONFAULTHANDLER": "1"}
    output = folder / name
    process = subprocess.Popen(
        [*words, "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        said = process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.send_signal(signal.SIGABRT)
        said = process.communicate()[1] + f"\nended after {timeout:.0f} s"
    if process.returncode:
        print(f"{name}:", said[-8000:], file=sys.stderr)
        return {"run": name, "reason": (said.strip().splitlines() or ["no message"])[-1][:200]}
    result = json.loads((output / "manifest.json").read_text())["result"]
    return {
        "run": name,
        "parallel": result["parallel"],
        "steps": result["steps"],
        "samples_per_second": result["samples_per_second"],
        "loss": result["loss"],
        "token_utilization": result["token_utilization"],
    }


def main() -> None:
    """Run all and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--records", type=int, default=192)
    parser.add_argument("--pack", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", nargs="+", help="only these: one, ddp, fsdp2, zero3")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of a run")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    names = options.runs or ["one", "ddp", "fsdp2", *(["zero3"] if find_spec("deepspeed") else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes: dict[str, Any] = {"dtype": torch.bfloat16, "longest_edge": 1024 * 1024}
        random_checkpoint(folder / "model", options.shape, device="cuda", **sizes)
        torch.cuda.empty_cache()
        data = write_records(folder / "data", options.records, sides=(128, 1280))
        command = ["edgetune", "train", "--checkpoint", str(folder / "model"), "--data", str(data)]
        command += ["--pack", str(options.pack), "--epochs", str(options.epochs), "--precision", "bf16"]
        command += ["--trainer-arg", "logging_steps=1"]
        rows = []
        for name in names:
            rows.append(run(name, options.gpus, command, folder, options.timeout))
            print(rows[-1], file=sys.stderr, flush=True)
    result = {"device": torch.cuda.get_device_name(), "gpus": options.gpus, "shape": options.shape, "rows": rows}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
