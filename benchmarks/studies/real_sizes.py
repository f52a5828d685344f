"""What each stage costs at the sizes that people deploy: seconds, and memory at its peak by the system's own account.

    python benchmarks/studies/real_sizes.py base calibrate export run table --tokenizer FOLDER --folder FOLDER

Each row is a verb in a process of its own, as a user runs it, on a checkpoint of random weights in the published shape:

    base       write the checkpoint
    train      train an adapter of rank 16 on random pictures with a request and a box each, in full packs
    merge      merge it, or one of random weights where none was trained
    calibrate  solve a weight set of the merged checkpoint, or of the base, on such records
    export     write an int4 bundle of the same, from the weight set where there is one, and check it
    run        load the bundle and answer about one picture

Rows go to results.json in the folder as they are measured; what a row needs is taken from there, and `table` prints all
of them. The tokenizer is a folder with the Qwen3 vocabulary and its control tokens. From QLoRA to a bundle, on a GPU:

    python benchmarks/studies/real_sizes.py base train merge export table --shape qwen2.5-vl-7b --device cuda
        --quantize nf4 --pack 2048 --steps 40 --samples 32 --picture 640x480 --tokenizer FOLDER --folder FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shapes import SHAPES

HERE = Path(__file__).parent
GPU = ("peak", "reserved")
"""What a stage tells of the GPU: the most that tensors took, and the most that torch had reserved for them."""


def measured(command: Sequence[str | Path]) -> dict[str, float]:
    """Run a command; return its seconds, those of all its cores, and the most that was resident in MB (10^6 bytes).

    The system charges a process with the size of the one that started it, so this one has to stay small.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} left with {process.returncode}")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss * 1024 / 1e6}


def of_stage(folder: Path) -> dict[str, float]:
    """What the folder of a stage takes on disk, and of the GPU where the stage tells, in MB."""
    result = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("result") or {}
    taken = {f"{kind}_gpu_mb": result[f"{kind}_gpu_bytes"] / 1e6 for kind in GPU if result.get(f"{kind}_gpu_bytes")}
    return {"written_mb": size_mb(folder), **taken}


def size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def edgetune(*words: str | Path) -> list[str | Path]:
    """The command line of a verb."""
    return [sys.executable, "-m", "edgetune", *words]


def base(options: argparse.Namespace) -> dict[str, float]:
    """Write the checkpoint."""
    folder = options.folder / "base"
    words = ["--tokenizer", options.tokenizer, "--output", folder, "--device", options.device]
    return measured([sys.executable, HERE / "shapes.py", options.shape, *words]) | {"written_mb": size_mb(folder)}


def train(options: argparse.Namespace) -> dict[str, float]:
    """Train an adapter."""
    adapter, records = options.folder / "adapter", written_records(options)
    words = ["--checkpoint", options.folder / "base", "--data", records, "--output", adapter]
    words += ["--pack", str(options.pack), "--quantize", options.quantize, "--gradient-checkpointing"]
    told = measured(edgetune("train", *words, "--trainer-arg", f"max_steps={options.steps}"))
    return told | of_stage(adapter) | {"tokens": options.pack, "steps": options.steps}


def merge(options: argparse.Namespace) -> dict[str, float]:
    """Merge an adapter."""
    start, adapter, merged = (options.folder / name for name in ("base", "adapter", "merged"))
    if not adapter.exists():
        subprocess.run([sys.executable, HERE / "random_adapter.py", start, "--output", adapter], check=True)
    words = ["--checkpoint", start, "--adapter", adapter, "--output", merged]
    return measured(edgetune("merge", *words)) | of_stage(merged)


def calibrate(options: argparse.Namespace) -> dict[str, float]:
    """Solve a weight set."""
    weights, records = options.folder / "weights", written_records(options)
    words = ["--checkpoint", checkpoint(options), "--data", records, "--output", weights, "--device", options.device]
    return measured(edgetune("calibrate", *words)) | of_stage(weights) | {"samples": options.samples}


def export(options: argparse.Namespace) -> dict[str, float]:
    """Write a bundle."""
    weights, bundle = options.folder / "weights", options.folder / "bundle"
    source = (
        ["--weights", weights] if weights.is_dir() else ["--precision", "int4", "--block-size", str(options.block_size)]
    )
    words = ["--checkpoint", checkpoint(options), *source, "--check", options.check, "--output", bundle]
    return measured(edgetune("export", *words, "--device", options.device)) | of_stage(bundle)


def run(options: argparse.Namespace) -> dict[str, float]:
    """Load the bundle and answer about one picture."""
    picture = options.folder / "picture.png"
    random_picture(0, options.picture).save(picture)
    bundle = options.folder / "bundle"
    command = "import sys; from edgetune_runtime.cli import main; sys.exit(main())"
    words = [bundle, picture, "the left clock", "--max-new-tokens", "32", "--json"]
    return measured([sys.executable, "-c", command, *words]) | {"written_mb": size_mb(bundle)}


ROWS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "base": base,
    "train": train,
    "merge": merge,
    "calibrate": calibrate,
    "export": export,
    "run": run,
}


def random_picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of coloured squares."""
    width, height = size
    squares = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return Image.fromarray(squares).resize(size)


def checkpoint(options: argparse.Namespace) -> Path:
    """The merged checkpoint where there is one, else the base."""
    merged: Path = options.folder / "merged"
    return merged if merged.is_dir() else options.folder / "base"


def written_records(options: argparse.Namespace) -> Path:
    """Write records with a picture, a request and a box each, and return their file."""
    folder, size, lines = options.folder / "data", options.picture, []
    folder.mkdir(exist_ok=True)
    for number in range(options.samples):
        random_picture(number, size).save(folder / f"{number}.png")
        x, y = (int(value) for value in np.random.default_rng(number).integers(0, min(size) // 2, 2))
        box = [x, y, x + size[0] // 4, y + size[1] // 4]
        lines.append(json.dumps({"image": f"{number}.png", "text": f"the clock number {number}", "bbox": box}))
    path: Path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    columns = {"seconds": "seconds", "cpu_seconds": "CPU seconds", "peak_mb": "peak, MB", "written_mb": "written, MB"}
    if any("peak_gpu_mb" in row for row in rows):
        columns |= {"peak_gpu_mb": "GPU tensors, MB", "reserved_gpu_mb": "GPU reserved, MB"}
    lines = [f"| shape | row | {' | '.join(columns.values())} |", "|---" * (2 + len(columns)) + "|"]
    for row in rows:
        numbers = " | ".join(f"{row[key]:,.0f}" if key in row else "" for key in columns)
        lines.append(f"| {row['shape']} | {row['row']} | {numbers} |")
    return "\n".join(lines)


def pixels(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    """Measure rows and note them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=[*ROWS, "table"])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-vl-2b")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, for the row base")
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints, bundles and results are written")
    parser.add_argument("--samples", type=int, default=8, help="records to train or calibrate on")
    parser.add_argument("--pack", type=int, default=2048, help="tokens of a training step")
    parser.add_argument("--steps", type=int, default=40, help="of the training")
    parser.add_argument("--quantize", default="none", help="what holds the base in training: none or nf4")
    parser.add_argument("--picture", type=pixels, default=(1024, 1024), help="size of pictures, as WIDTHxHEIGHT")
    parser.add_argument("--block-size", type=int, default=128, help="of an export without a weight set")
    parser.add_argument("--check", default="fast", help="self-check of export: full, fast or none")
    parser.add_argument(
        "--device", default="cpu", help="where weights are drawn, and calibrate and export compute: cpu or cuda"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for name in options.rows:
        if name == "table":
            print(table(rows))
            continue
        told = {"shape": options.shape, "row": name, "cores": len(os.sched_getaffinity(0)), **ROWS[name](options)}
        rows = [row for row in rows if (row["shape"], row["row"]) != (options.shape, name)] + [told]
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
