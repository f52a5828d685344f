"""What a picture costs in the vision encoder at the sizes that are published: seconds, and the memory at its peak.

A tower with random weights in the shape of a published model is written in float32 and with int8 products, and runs
under onnxruntime; the peer is the same tower in transformers (float32, SDPA) under torch. Each is a process of its own;
they take turns, so that a busy moment of the machine hits all of them:

    python benchmarks/studies/vision_size.py --shape qwen3-vl-2b --picture 1280x960 --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import SHAPES

SYSTEMS = ("transformers float32", "edgetune float32", "edgetune int8")


def build(shape: str, layers: int | None = None) -> Any:
    """The tower of transformers with random weights; of the first so many layers where a number is given."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = SHAPES[shape]
    text = {"hidden_size": sizes.vision["out_hidden_size"], "num_hidden_layers": 1, "intermediate_size": 64}
    vision = dict(sizes.vision)
    if layers is not None:
        vision["depth"] = layers
        if "deepstack_visual_indexes" in vision:
            vision["deepstack_visual_indexes"] = [at for at in vision["deepstack_visual_indexes"] if at < layers]
    config = AutoConfig.for_model(sizes.family, vision_config=vision, text_config=text | {"vocab_size": 64})
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").model.visual.float().eval()


def source_of(tower: Any, family: str) -> Any:
    """A tower without the rest of its model, to be written as a graph."""
    import torch

    from edgetune_export.vision.writer import VisionSource
    from edgetune_runtime.families import get_family

    modules = get_family(family).modules
    assert modules is not None
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"visual": tower})})
    return VisionSource(model, modules)


def write(shape: str, folder: Path) -> None:
    """Write both graphs."""
    import onnx_ir as ir

    from edgetune_export.graph import save_model
    from edgetune_export.vision.attention import FUSED
    from edgetune_export.vision.int8 import quantize_linears
    from edgetune_export.vision.products import Dynamic
    from edgetune_export.vision.towers import tower_of
    from edgetune_runtime.families import get_family

    source, dynamic = source_of(build(shape), SHAPES[shape].family), Dynamic()
    for system in SYSTEMS[1:]:
        model = tower_of(get_family(SHAPES[shape].family).tower).write(source, FUSED, ir.DataType.FLOAT)
        if system.endswith("int8"):
            quantize_linears(model, lambda name: dynamic)
        save_model(model, folder / f"{system}.onnx")


def encoder(system: str, shape: str, folder: Path, threads: int) -> Callable[[Any, Any], Any]:
    """What encodes float32 patches [P, K] and a grid [1, 3], and returns features [tokens, H]."""
    if system == SYSTEMS[0]:
        import torch

        torch.set_num_threads(threads)
        tower = build(shape)

        def run(patches: Any, grid: Any) -> Any:
            with torch.inference_mode():
                return tower(torch.from_numpy(patches), torch.from_numpy(grid)).pooler_output.numpy()

        return run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / f"{system}.onnx"), options)
    return lambda patches, grid: session.run(None, {"pixel_values": patches, "image_grid_thw": grid})[0]


def serve(system: str, shape: str, folder: Path, threads: int, picture: tuple[int, int]) -> None:
    """Encode the picture once for each line of standard input; print seconds and the peak of memory in MB."""
    rule = SHAPES[shape].preprocessor
    patch, merge = rule["patch_size"], rule["merge_size"]
    columns, rows = (side // (patch * merge) * merge for side in picture)
    patches = np.random.default_rng(0).standard_normal((rows * columns, 3 * 2 * patch * patch), dtype=np.float32)
    grid = np.array([[1, rows, columns]])
    run = encoder(system, shape, folder, threads)
    for _ in sys.stdin:
        started = time.perf_counter()
        features = run(patches, grid)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        np.save(folder / f"{system}.npy", features)
        print(json.dumps({"patches": len(patches), "seconds": seconds, "peak_mb": peak}), flush=True)


def measure(shape: str, folder: Path, threads: int, picture: str, rounds: int) -> list[dict[str, Any]]:
    """One row a system: the median of its rounds after a first one, and its ratio to transformers' seconds."""
    common = ["--shape", shape, "--threads", str(threads), "--picture", picture, "--folder", str(folder)]
    # Not in this process: what it holds would count as its children's peak.
    subprocess.run([sys.executable, __file__, *common, "--write"], check=True)
    workers = {
        system: subprocess.Popen(
            [sys.executable, __file__, *common, "--serve", system],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for system in SYSTEMS
    }
    told: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for _ in range(rounds + 1):
        for system, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            told[system].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    exact = np.load(folder / f"{SYSTEMS[0]}.npy")
    rows, peer = [], 0.0
    for system, answers in told.items():
        seconds = statistics.median(answer["seconds"] for answer in answers[1:])
        peer = peer or seconds
        ours = np.load(folder / f"{system}.npy")
        cosine = (ours * exact).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)
        row = {"system": system, "patches": answers[0]["patches"], "seconds": seconds, "ratio": seconds / peer}
        rows.append(row | {"peak_mb": answers[-1]["peak_mb"], "cosine": float(cosine.mean())})
    return rows


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-vl-2b")
    parser.add_argument("--picture", default="1280x960", help="width and height of the resized picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = map(int, options.picture.split("x"))
    if options.write:
        write(options.shape, options.folder)
        return
    if options.serve:
        serve(options.serve, options.shape, options.folder, options.threads, (width, height))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.shape, Path(folder), options.threads, options.picture, options.rounds)
    print("| | patches | seconds | of transformers | peak MB | cosine |\n|---|---|---|---|---|---|")
    for row in rows:
        numbers = f"{row['seconds']:.2f} | {row['ratio']:.2f} | {row['peak_mb']:.0f} | {row['cosine']:.5f}"
        print(f"| {row['system']} | {row['patches']} | {numbers} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
