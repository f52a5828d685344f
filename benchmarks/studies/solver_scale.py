"""How long calibration takes and how much memory it needs at real sizes: random weights, real shapes, real pictures.

Usage, from the root of the repository:

    python benchmarks/studies/solver_scale.py [--shape 2b] [--layers N] [--samples 128]
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
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen3VLConfig

from edgetune_calibrate.quantize import DecoderSettings, quantize_decoder
from edgetune_calibrate.solve import SolveSettings
from edgetune_runtime.families import get_family

SHAPES: dict[str, dict[str, Any]] = {
    # The text and vision sizes of the published Qwen3-VL-2B and Qwen2.5-VL-7B configurations.
    "2b": {
        "family": "qwen3_vl",
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vision": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16},
    },
    "7b": {
        "family": "qwen2_5_vl",
        "text": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
    },
}
IMAGE, START, END = 1000, 1001, 1002
"""Token ids of the picture's tokens and its ends; any three would do."""


def build(shape: dict[str, Any], layers: int, device: str) -> Any:
    """Return a bfloat16 model of random weights."""
    text = shape["text"] | {"num_hidden_layers": layers}
    ids: dict[str, Any] = {
        "image_token_id": IMAGE,
        "video_token_id": 1003,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    if shape["family"] == "qwen3_vl":
        text["rope_parameters"] = {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "rope_type": "default"}
        vision = shape["vision"] | {"out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": [5, 11, 17]}
        config: Any = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    else:
        text["rope_parameters"] = {"rope_theta": 1e6, "mrope_section": [16, 24, 24], "rope_type": "default"}
        vision = shape["vision"] | {"out_hidden_size": text["hidden_size"]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return AutoModelForImageTextToText.from_config(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


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
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--layers", type=int, help="of the decoder, at least 2; by default all")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--image-tokens", type=int, nargs=2, default=(24, 32), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--words", type=int, default=96, help="text tokens of a sample")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--method", choices=("gptq", "awq", "rtn"), default="gptq")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()

    shape = SHAPES[options.shape]
    modules = get_family(shape["family"]).modules
    assert modules is not None
    whole = shape["text"]["num_hidden_layers"]
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
