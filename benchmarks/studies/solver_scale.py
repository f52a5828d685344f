"""How long calibration takes and how much memory it needs at real sizes: random weights, real shapes, real pictures.

Usage, from the root of the repository:

    python benchmarks/studies/solver_scale.py [--shape NAME] [--layers N] [--samples 128]
        [--group-size 128] [--device cuda]

Weights are random, so nothing is said about accuracy; time and memory do not depend on the values. With fewer
`--layers` than the shape has, the walk through the decoder is scaled up to all of them (its blocks cost the same), and
the picture part, which is run once, is not.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from typing import Any

import torch
import transformers
from shapes import SHAPES, Shape, config_of
from torch import Tensor
from transformers import AutoModelForImageTextToText

from edgetune_calibrate.quantize import DecoderSettings, quantize_decoder
from edgetune_calibrate.solve import SolveSettings
from edgetune_runtime.families import get_family

IMAGE, START, END = 1000, 1001, 1002
"""Token ids of the picture's tokens and its ends; any three would do."""


def build(shape: Shape, layers: int, device: str) -> Any:
    """Return a bfloat16 model of random weights."""
    ids = {"image_token_id": IMAGE, "video_token_id": 1003, "vision_start_token_id": START, "vision_end_token_id": END}
    config = config_of(replace(shape, text=shape.text | {"num_hidden_layers": layers}), ids)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()


def samples(model: Any, count: int, side: tuple[int, int], words: int) -> list[dict[str, Tensor]]:
    """Return `count` conversations about a noise picture of `side` (rows, columns) image tokens, with random words."""
    vision = model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    merge = vision.spatial_merge_size
    rows, columns = side[0] * merge, side[1] * merge
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    batches = []
    for _ in range(count):
        picture = torch.tensor([START, *[IMAGE] * (side[0] * side[1]), END])
        text = torch.randint(2000, 100_000, (words,), generator=generator)
        ids = torch.cat([text[: words // 4], picture, text[words // 4 :]])[None]
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": (ids == IMAGE).long(),
                "pixel_values": torch.randn(rows * columns, width, generator=generator).bfloat16(),
                "image_grid_thw": torch.tensor([[1, rows, columns]]),
            }
        )
    return batches


def main() -> None:
    """Calibrate once and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-vl-2b")
    parser.add_argument("--layers", type=int, help="of the decoder, at least 2; by default all")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--image-tokens", type=int, nargs=2, default=(24, 32), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--words", type=int, default=96, help="text tokens of a sample")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--method", choices=("gptq", "awq", "rtn"), default="gptq")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()

    shape = SHAPES[options.shape]
    modules = get_family(shape.family).modules
    assert modules is not None
    whole = shape.text["num_hidden_layers"]
    layers = options.layers or whole
    model = build(shape, layers, options.device)
    batches = samples(model, options.samples, tuple(options.image_tokens), options.words)
    solve = SolveSettings(method=options.method, group_size=options.group_size)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    began = time.perf_counter()
    blocks = []
    for block in quantize_decoder(model, modules, batches, DecoderSettings(solve=solve), device=options.device):
        blocks.append(block.report["seconds"])
        print(f"block {block.index}: {blocks[-1]:.2f} s", flush=True)
    seconds = time.perf_counter() - began
    typical = sum(blocks[1:]) / len(blocks[1:])  # the first block also waits for the pictures
    result = {
        "shape": options.shape,
        "method": options.method,
        "group_size": options.group_size,
        "samples": options.samples,
        "tokens": int(sum(batch["input_ids"].numel() for batch in batches)),
        "layers": layers,
        "seconds": round(seconds, 1),
        "seconds_per_block": round(typical, 2),
        "pictures_seconds": round(blocks[0] - typical, 1),
        "seconds_all_layers": round(blocks[0] + typical * (whole - 1), 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if options.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
        result["weights_gb"] = round(held / 1e9, 2)
        result["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
