"""How long calibration takes and how much memory it needs at real sizes: random weights, real shapes, real pictures.

Usage, from the root of the repository:

    python benchmarks/studies/solver_scale.py qwen3-vl-2b --folder FOLDER [--samples 128] [--layers N] [--device cuda]
        [--memory-gb N]

Weights are random, so nothing is said about accuracy; time and memory do not depend on the values. The checkpoint is
written into the folder unless it is there. With fewer `--layers` than the shape has, memory is that of the whole model,
since a calibration has one block in memory at a time; `seconds_per_block` is that of the blocks after the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from shape import Shape
from shapes import SHAPES, write_checkpoint

from edgetune_calibrate.run import calibrate
from edgetune_calibrate.settings import CalibrateSettings
from edgetune_runtime.families import get_family

TOKENIZER = Path("examples/tiny/model")


def write_records(folder: Path, shape: Shape, count: int, side: tuple[int, int]) -> Path:
    """Write records of one box each about pictures of `side` (rows, columns) image tokens; return their file."""
    family = get_family(shape.family)
    token = family.patch_size * family.merge_size
    height, width = side[0] * token, side[1] * token
    random = np.random.default_rng(0)
    lines = []
    for number in range(count):
        noise = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        Image.fromarray(noise).resize((width, height)).save(folder / f"{number}.jpg")
        left, top = random.integers(0, width // 4), random.integers(0, height // 4)
        box = [int(left), int(top), int(left) + width // 3, int(top) + height // 3]
        text = f"the cup number {number} that stands on the left side of the other things"
        lines.append(json.dumps({"image": f"{number}.jpg", "text": text, "bbox": box}) + "\n")
    (folder / "records.jsonl").write_text("".join(lines))
    return folder / "records.jsonl"


def main() -> None:
    """Calibrate once and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is, or is written to")
    parser.add_argument("--layers", type=int, help="of the decoder, at least 2; by default all")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--image-tokens", type=int, nargs=2, default=(24, 32), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--method", choices=("gptq", "awq", "rtn"), default="gptq")
    parser.add_argument("--head", type=int, choices=(16, 8, 4), default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--memory-gb", type=float)
    options = parser.parse_args()

    shape = SHAPES[options.shape]
    if options.layers:
        shape = replace(shape, text=shape.text | {"num_hidden_layers": options.layers})
    checkpoint = options.folder / f"{options.shape}-{shape.text['num_hidden_layers']}"
    if not checkpoint.exists():
        write_checkpoint(shape, TOKENIZER, checkpoint)
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("method", "head", "device", "memory_gb")}
    told = CalibrateSettings(samples=options.samples, group_sizes=(options.group_size,), **settings)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        work = Path(place) / "work"
        work.mkdir()
        data = write_records(Path(place), shape, options.samples, tuple(options.image_tokens))
        result = calibrate(checkpoint, data, work, told, progress=_tell)
    calibration = result["weightset"]["calibration"]
    blocks = calibration["block_seconds"]
    measured = {
        "shape": options.shape,
        "layers": shape.text["num_hidden_layers"],
        **settings,
        "group_size": options.group_size,
        "samples": options.samples,
        "tokens": calibration["tokens"],
        "seconds": result["seconds"],
        "seconds_per_block": round(sum(blocks[1:]) / max(1, len(blocks) - 1), 2),
        "seconds_besides_blocks": round(result["seconds"] - sum(blocks), 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if options.device == "cuda":
        measured["gpu"] = torch.cuda.get_device_name()
        measured["peak_gpu_gb"] = round(result["peak_gpu_bytes"] / 1e9, 2)
    print(json.dumps(measured))


def _tell(done: int, total: int) -> None:
    print(f"block {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
