"""Our int8 vision encoders beside OpenVINO, which reads the float32 one: seconds, memory and accuracy by patches.

    pip install "edgetune[export,openvino]"
    python benchmarks/peers/vision_openvino.py --threads 8

A tower with random weights in the shape of a published model is written as `edgetune export` writes it, for onnxruntime
and with `--target openvino` for our engine of that name: with static int8 products, as from a weight set, and with
weights alone in int8, as without one. The peer is OpenVINO itself on the float32 graph, in the precision that it
chooses for the CPU (bfloat16 where the CPU multiplies it). Each is a process of its own; they take turns, so that a
busy moment of the machine hits all of them. Cosines are with float32 under onnxruntime, over the image tokens of the
smallest picture. Memory is read from `/proc`, so this needs Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

if TYPE_CHECKING:
    from edgetune_runtime.backends.onnx.engine import Encoder

OURS, STATIC, WEIGHTS = "edgetune int8", "edgetune int8-static, engine openvino", "edgetune int8, engine openvino"
PEER, EXACT = "OpenVINO", "float32"
FILES = {
    OURS: "int8.onnx",
    STATIC: "static.onnx",
    WEIGHTS: "weights.onnx",
    PEER: "standard.onnx",
    EXACT: "standard.onnx",
}
CALIBRATION = [[1, 16, 16]]
"""Grid of the random picture that ranges are taken from, and the accuracy of layers."""

Run = Callable[[dict[str, Any]], Any]


def write(shape: str, layers: int | None, folder: Path) -> None:
    """Write the graphs."""
    import onnx_ir as ir
    import torch
    from vision_size import build, source_of

    from edgetune_calibrate.vision import InputRanges
    from edgetune_export.graph import save_model
    from edgetune_export.vision.attention import FUSED, STANDARD
    from edgetune_export.vision.int8 import Seen, dynamic_layers, quantize_linears, static_layers
    from edgetune_export.vision.products import Dynamic, Range, by_block, static_standard, weights_only
    from edgetune_export.vision.towers import tower_of
    from edgetune_runtime.families import get_family
    from edgetune_runtime.quant.blocks import BlockFormat

    tower = build(shape, layers)
    family, width = tower.config.model_type.removesuffix("_vision"), int(tower.patch_embed.proj.weight[0].numel())
    picture = arrays(CALIBRATION, width)
    image = {"hidden_states": torch.from_numpy(picture["pixel_values"])}
    image["grid_thw"] = torch.from_numpy(picture["image_grid_thw"])
    seen = Seen(tower, "blocks", tower, [image])
    dynamic, slow = Dynamic(), by_block(BlockFormat(8, 32, symmetric=True))
    free = dynamic_layers(seen)
    with torch.no_grad(), InputRanges(torch.nn.ModuleDict({"tower": tower}), "tower") as watched:
        tower(**image)
    ranges = {f"{name}.weight": Range.of(span["low"], span["high"]) for name, span in watched.ranges().items()}
    fixed = static_layers(seen, ranges)
    schemes = {
        OURS: (FUSED, lambda name: dynamic if name in free else slow),
        STATIC: (STANDARD, lambda name: static_standard(ranges[name]) if name in fixed else weights_only),
        WEIGHTS: (STANDARD, lambda name: weights_only),
        PEER: (STANDARD, None),
    }
    for system, (operators, choose) in schemes.items():
        model = tower_of(get_family(family).tower).write(source_of(tower, family), operators, ir.DataType.FLOAT)
        if choose is not None:
            quantize_linears(model, choose)
        save_model(model, folder / FILES[system])


def arrays(grid: list[list[int]], width: int) -> dict[str, Any]:
    """Random patches [P, width] of a grid [1, 3]."""
    count = int(np.prod(grid))
    patches = np.random.default_rng(count).standard_normal((count, width), dtype=np.float32)
    return {"pixel_values": patches, "image_grid_thw": np.array(grid)}


def grid_of(patches: int) -> list[list[int]]:
    """The grid closest to a square whose sides are even.

    Raises:
        SystemExit: there is none.
    """
    sides = [side for side in range(2, int(patches**0.5) + 1, 2) if patches % (2 * side) == 0]
    if not sides:
        sys.exit(f"error: {patches} patches are no grid with even sides: take a multiple of 4")
    return [[1, sides[-1], patches // sides[-1]]]


def encoder(system: str, folder: Path, threads: int) -> tuple[Run, int, str]:
    """What encodes arrays and returns features [tokens, H]; the width of a patch; how it computes."""
    path = folder / FILES[system]
    if system == PEER:
        import openvino

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
        model = core.compile_model(path, "CPU")
        request, precision = model.create_infer_request(), model.get_property("INFERENCE_PRECISION_HINT")
        width = model.input("pixel_values").get_partial_shape()[1].get_length()
        return (
            lambda images: request.infer(images)["image_features"].copy(),
            width,
            f"{openvino.__version__.split('-')[0]}, {precision.get_type_name()}",
        )
    import onnxruntime

    if system == EXACT:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options)
        return lambda images: session.run(None, images)[0], session.get_inputs()[0].shape[1], ""
    from edgetune_runtime.backends.onnx.encoder import VisionEncoder
    from edgetune_runtime.backends.openvino.engine import OpenvinoEncoder
    from edgetune_runtime.backends.values import Device

    cpu = Device("cpu")
    ours: Encoder = VisionEncoder(path, cpu, threads) if system == OURS else OpenvinoEncoder(path, threads)
    assert ours.pixels is not None
    how = f"onnxruntime {onnxruntime.__version__}" if system == OURS else "OpenVINO"
    return lambda images: ours(images).embeddings, ours.pixels, how


def memory(name: str) -> float:
    """A line of this process's memory in MB (10^6 bytes): `VmRSS`, or `VmHWM`, the most that was resident."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 / 1e6


def serve(system: str, folder: Path, threads: int) -> None:
    """Load; for each line of standard input, a number of patches, encode a picture and print what it took."""
    run, width, how = encoder(system, folder, threads)
    loaded = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # loading may have taken more than it keeps
    print(json.dumps({"how": how, "loaded_mb": loaded}), flush=True)
    for line in sys.stdin:
        images = arrays(grid_of(int(line)), width)
        started, busy = time.perf_counter(), time.process_time()
        features = run(images)
        told = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
        np.save(folder / f"{system}.{int(line)}.npy", features)
        print(json.dumps({**told, "peak_mb": memory("VmHWM")}), flush=True)


class Worker:
    """A process that holds one system."""

    def __init__(self, system: str, options: argparse.Namespace, folder: Path) -> None:
        words = ["--serve", system, "--folder", str(folder), "--threads", str(options.threads)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loaded = self._answer()

    def run(self, patches: int) -> dict[str, Any]:
        """Encode once."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{patches}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("error: a system failed, see above")
        told: dict[str, Any] = json.loads(line)
        return told


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row a system and number of patches: the median of its rounds after a first one."""
    common = ["--shape", options.shape, "--folder", str(folder)]
    layers = [] if options.layers is None else ["--layers", str(options.layers)]
    subprocess.run([sys.executable, __file__, *common, *layers, "--write"], check=True)
    smallest = min(options.patches)
    exact = Worker(EXACT, options, folder)
    exact.run(smallest)
    exact.close()
    workers = {system: Worker(system, options, folder) for system in (OURS, STATIC, WEIGHTS, PEER)}
    rows = []
    for patches in sorted(options.patches):
        told: dict[str, list[dict[str, Any]]] = {system: [] for system in workers}
        for _ in range(options.rounds + 1):
            for system, worker in workers.items():
                told[system].append(worker.run(patches))
        peer = statistics.median(answer["seconds"] for answer in told[PEER][1:])
        for system, answers in told.items():
            seconds, cpu = (
                statistics.median(answer[kind] for answer in answers[1:]) for kind in ("seconds", "cpu_seconds")
            )
            row = {"system": system, "patches": patches, "first_s": answers[0]["seconds"], "seconds": seconds}
            row |= {"ratio": seconds / peer, "cpu_seconds": cpu, "peak_mb": answers[-1]["peak_mb"]}
            row |= {"cosine": cosine(folder, system, smallest), **workers[system].loaded}
            rows.append(row)
    for worker in workers.values():
        worker.close()
    return rows


def cosine(folder: Path, system: str, patches: int) -> float:
    """Mean over image tokens, with float32."""
    ours, exact = (np.load(folder / f"{name}.{patches}.npy") for name in (system, EXACT))
    return float(((ours * exact).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)).mean())


def main() -> None:
    """Measure what the command line asks for."""
    from shapes import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-vl-2b")
    parser.add_argument("--layers", type=int, help="of the tower; the shape's own where not given")
    parser.add_argument("--patches", type=int, nargs="+", default=[1200, 4096])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.shape, options.layers, options.folder)
        return
    for patches in options.patches:
        grid_of(patches)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    columns = ["", "patches", "first, s", "s", "of OpenVINO", "CPU s", "loaded, MB", "peak, MB", "cosine"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        numbers = f"{row['first_s']:.2f} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['cpu_seconds']:.2f}"
        memories = f"{row['loaded_mb']:.0f} | {row['peak_mb']:.0f} | {row['cosine']:.5f}"
        print(f"| {row['system']} ({row['how']}) | {row['patches']} | {numbers} | {memories} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--serve" in sys.argv:  # a worker
        worker = argparse.ArgumentParser()
        worker.add_argument("--serve")
        worker.add_argument("--folder", type=Path)
        worker.add_argument("--threads", type=int)
        asked = worker.parse_args()
        serve(asked.serve, asked.folder, asked.threads)
    else:
        main()
