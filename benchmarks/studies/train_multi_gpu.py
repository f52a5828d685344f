"""Training on several GPUs beside one: data parallel, FSDP2 and, where it is installed, DeepSpeed ZeRO-3.

Usage, from the root of the repository:

    python benchmarks/studies/train_multi_gpu.py [--gpus 2] [--shape 2b] [--records 192] [--pack 4096] [--timeout 600]

The same command that a user gives, `accelerate launch --config_file examples/accelerate/X.yaml -m edgetune train`, on
Qwen3-VL-2B's sizes with random weights. Each run makes the same optimizer steps: what N GPUs do at once, one adds up.
Losses must agree to what other packs and bfloat16's rounding make of them; the time is that of the training alone.
A run that exceeds the timeout is ended, and the stacks of all its processes are printed. `zero3 alone` is ZeRO-3 by
transformers, peft and DeepSpeed (`zero3_alone.py`): where it does not end either, the cause is not edgetune. DeepSpeed
compiles operators of its own when it first needs them, which takes minutes: give ZeRO-3 a `--timeout` of 900.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from train_world import SHAPES, random_checkpoint, write_records

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "examples" / "accelerate"
STARTING = 60
"""Seconds that processes may take to begin, in which their time does not count."""


def run(name: str, gpus: int, words: list[str], folder: Path, timeout: float) -> dict[str, Any]:
    """Train once and return a row of the table, or why there is none.

    Args:
        name: "one", or a config for accelerate, maybe with " alone" behind it.
        gpus: how many the others use.
        words: of `python`, without the output.
        folder: where the output goes.
        timeout: seconds.
    """
    place = folder / name.replace(" ", "-")
    place.mkdir()
    launcher = [sys.executable]
    if name != "one":
        config = ["--config_file", str(CONFIGS / f"{name.split()[0]}.yaml"), "--num_processes", str(gpus)]
        launcher += ["-m", "accelerate.commands.launch", *config]
    devices = "0" if name == "one" else ",".join(map(str, range(gpus)))
    output, said = place / "adapter", place / "said.txt"
    words = [*launcher, str(HERE / "watched.py"), str(timeout), str(place), *words]
    if not name.endswith(" alone"):
        words += ["--output", str(output), *(["--accumulate", str(gpus)] if name == "one" else [])]
    began = time.perf_counter()
    with said.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | {"CUDA_VISIBLE_DEVICES": devices})
        ended = _wait(process, place, 1 if name == "one" else gpus, timeout)
    seconds = round(time.perf_counter() - began, 1)
    text = said.read_text(encoding="utf-8").strip()
    if not ended or process.returncode:
        print(f"{name}:", text[-8000:], file=sys.stderr)
        for stacks in sorted(place.glob("rank*.txt")):
            print(f"{name}, {stacks.stem}:", stacks.read_text(encoding="utf-8"), file=sys.stderr)
        reason = (text.splitlines() or ["no message"])[-1][:200] if ended else f"ended after {seconds} s"
        return {"run": name, "reason": reason}
    if name.endswith(" alone"):
        return {"run": name, "seconds": seconds, "said": text.splitlines()[-1]}
    result = json.loads((output / "manifest.json").read_text())["result"]
    return {
        "run": name,
        "seconds": seconds,
        "parallel": result["parallel"],
        "steps": result["steps"],
        "samples_per_second": result["samples_per_second"],
        "loss": result["loss"],
        "token_utilization": result["token_utilization"],
    }


def _wait(process: subprocess.Popen[bytes], place: Path, ranks: int, timeout: float) -> bool:
    """Return whether a run ends; one that does not is killed, once all its processes have written their stacks."""
    ends = time.monotonic() + timeout + STARTING
    while process.poll() is None and time.monotonic() < ends:
        if sum(path.stat().st_size > 0 for path in place.glob("rank*.txt")) == ranks:
            break
        time.sleep(1)
    if process.poll() is not None:
        return True
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.send_signal(signal.SIGKILL)
    process.wait()
    return False


def main() -> None:
    """Run all and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--records", type=int, default=192)
    parser.add_argument("--pack", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", nargs="+", help="only these: one, ddp, fsdp2, zero3, zero3 alone")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of a run")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    names = options.runs or ["one", "ddp", "fsdp2", *(["zero3", "zero3 alone"] if find_spec("deepspeed") else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes: dict[str, Any] = {"dtype": torch.bfloat16, "longest_edge": 1024 * 1024}
        random_checkpoint(folder / "model", options.shape, device="cuda", **sizes)
        torch.cuda.empty_cache()
        data = write_records(folder / "data", options.records, sides=(128, 1280))
        command = ["-m", "edgetune", "train", "--checkpoint", str(folder / "model"), "--data", str(data)]
        command += ["--pack", str(options.pack), "--epochs", str(options.epochs), "--precision", "bf16"]
        command += ["--trainer-arg", "logging_steps=1"]
        alone = [str(HERE / "zero3_alone.py"), str(folder / "model")]
        rows = []
        for name in names:
            words = alone if name.endswith(" alone") else command
            rows.append(run(name, options.gpus, words, folder, options.timeout))
            print(rows[-1], file=sys.stderr, flush=True)
    result = {"device": torch.cuda.get_device_name(), "gpus": options.gpus, "shape": options.shape, "rows": rows}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
