"""What each stage costs at the sizes that people deploy: seconds, and memory at its peak by the system's own account.

    python benchmarks/studies/real_sizes.py base calibrate export run table --tokenizer FOLDER --folder FOLDER

Each row is a verb in a process of its own, as a user runs it, on a checkpoint of random weights in the published shape:

    base       write the checkpoint
    merge      merge a LoRA adapter of rank 16 on all linear layers of the decoder
    calibrate  solve a weight set on random pictures with a request and a box each
    export     write an int4 bundle, from the weight set where there is one, and check it
    run        load the bundle and answer about one picture

Rows go to results.json in the folder as they are measured; what a row needs is taken from there, and `table` prints all
of them. The tokenizer is a folder with the Qwen3 vocabulary and its control tokens.
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
from merge_size import write_adapter
from PIL import Image
from shapes import SHAPES

HERE = Path(__file__).parent


def measured(command: Sequence[str | Path]) -> dict[str, float]:
    """Run a command; return its seconds, those of all its cores, and the most that was resident in MB (10^6 bytes).

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


def size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def edgetune(*words: str | Path) -> list[str | Path]:
    """The command line of a verb."""
    return [sys.executable, "-m", "edgetune", *words]


def base(options: argparse.Namespace) -> dict[str, float]:
    """Write the checkpoint."""
    folder = options.folder / "base"
    told = measured(
        [sys.executable, HERE / "shapes.py", options.shape, "--tokenizer", options.tokenizer, "--output", folder]
    )
    return told | {"written_mb": size_mb(folder)}


def merge(options: argparse.Namespace) -> dict[str, float]:
    """Merge an adapter."""
    adapter, merged = options.folder / "adapter", options.folder / "merged"
    if not adapter.exists():
        write_adapter(options.folder / "base", adapter, rank=16)
    told = measured(edgetune("merge", options.folder / "base", adapter, "--output", merged))
    return told | {"written_mb": size_mb(merged)}


def calibrate(options: argparse.Namespace) -> dict[str, float]:
    """Solve a weight set."""
    data, weights = options.folder / "data", options.folder / "weights"
    write_records(data, options.samples, options.picture)
    words = ["--checkpoint", options.folder / "base", "--data", data / "data.jsonl", "--output", weights]
    told = measured(edgetune("calibrate", *words, "--device", options.device))
    return told | {"written_mb": size_mb(weights), "samples": options.samples}


def export(options: argparse.Namespace) -> dict[str, float]:
    """Write a bundle."""
    weights, bundle = options.folder / "weights", options.folder / "bundle"
    source = (
        ["--weights", weights] if weights.is_dir() else ["--precision", "int4", "--block-size", str(options.block_size)]
    )
    words = ["--checkpoint", options.folder / "base", *source, "--check", options.check, "--output", bundle]
    told = measured(edgetune("export", *words, "--device", options.device))
    return told | {"written_mb": size_mb(bundle)}


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


def write_records(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write records with a picture, a request and a box each."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        random_picture(number, size).save(folder / f"{number}.png")
        x, y = (int(value) for value in np.random.default_rng(number).integers(0, min(size) // 2, 2))
        box = [x, y, x + size[0] // 4, y + size[1] // 4]
        lines.append(json.dumps({"image": f"{number}.png", "text": f"the clock number {number}", "bbox": box}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| shape | row | seconds | CPU seconds | peak, MB | written, MB |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = " | ".join(f"{row[key]:,.0f}" for key in ("seconds", "cpu_seconds", "peak_mb", "written_mb"))
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
    parser.add_argument("--samples", type=int, default=8, help="records to calibrate on")
    parser.add_argument("--picture", type=pixels, default=(1024, 1024), help="size of pictures, as WIDTHxHEIGHT")
    parser.add_argument("--block-size", type=int, default=128, help="of an export without a weight set")
    parser.add_argument("--check", default="fast", help="self-check of export: full, fast or none")
    parser.add_argument("--device", default="cpu", help="where calibrate and the self-check compute: cpu or cuda")
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
