"""What TensorRT-RTX engines cost to build: seconds, memory and size, on a machine without a GPU.

Two decoders: the tiny example model, and random weights of the Qwen2.5-0.5B shape (24 layers, hidden 896, 14 heads of
which 2 have keys, intermediate 4864, vocabulary 151,936) with int4 layers and head. Each is built for every profile and
target that is asked for, in a process of its own:

    python benchmarks/studies/trt_build.py --output runs/trt-build
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.trt_fused import PROFILES
from edgetune_export.decoder.weights import DecoderSpec, DecoderWeights
from edgetune_export.graph import save_model
from edgetune_export.vision.attention import ONE_FRAME
from edgetune_export.vision.towers import tower_of
from edgetune_export.vision.trt import quantize_static
from edgetune_export.vision.writer import VisionSource
from edgetune_runtime.backends.trt.build import BuildJob, build_apart
from edgetune_runtime.backends.trt.build_engine import parse_target
from edgetune_runtime.backends.trt.library import load_library
from edgetune_runtime.families import Modules, get_family
from edgetune_runtime.quant.blocks import BlockFormat

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"
CHUNK = 512
"""Tokens of the prefill profile."""


def half_billion() -> Any:
    """A model with a text decoder of the Qwen2.5-0.5B shape, random weights and hardly any vision tower."""
    text = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 896}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def decoder_profiles(spec: DecoderSpec) -> list[dict[str, list[list[int]]]]:
    """One token, and up to CHUNK."""
    profiles = []
    for counts in ((1, 1, 1), (1, CHUNK // 2, CHUNK)):
        states = ["inputs_embeds", *(f"deepstack_embeds.{layer}" for layer in range(spec.deepstack))]
        shapes: dict[str, list[list[int]]] = {name: [[1, count, spec.hidden] for count in counts] for name in states}
        shapes["position_ids"] = [[3, 1, count] for count in counts]
        profiles.append(shapes | {"cache_position": [[count] for count in counts]})
    return profiles


def modules_of(model: Any) -> Modules:
    """The names of a model's family."""
    modules = get_family(model.config.model_type).modules
    assert modules is not None
    return modules


def decoders(model: Any, name: str, folder: Path, profiles: list[str], length: int) -> Iterator[dict[str, Any]]:
    """Write int4 decoders; yields what to build."""
    columns = model.config.get_text_config().hidden_size
    block = 128 if columns % 128 == 0 else 64
    fmt = BlockFormat(4, block, symmetric=False)
    weights = DecoderWeights(model, modules_of(model), layers_format=fmt, head_format=fmt)
    for profile in profiles:
        path = folder / f"{name}-{profile}.onnx"
        save_model(build_decoder(weights, partial(PROFILES[profile], max_length=length)), path)
        yield {"model": name, "graph": f"decoder int4 g{block}", "profile": profile, "path": path} | {
            "ranges": decoder_profiles(weights.spec)
        }


def encoders(model: Any, name: str, folder: Path, patches: int) -> Iterator[dict[str, Any]]:
    """Write a float16 and an int8 vision encoder; yields what to build."""
    tower, family = model.model.visual, get_family(model.config.model_type)
    layers = [layer for layer, module in tower.named_modules() if isinstance(module, torch.nn.Linear)]
    for precision in ("fp16", "int8"):
        source = VisionSource(model, modules_of(model))
        graph = tower_of(family.tower).write(source, ONE_FRAME, ir.DataType.FLOAT16)
        width = tower.patch_embed.proj.weight[0].numel()
        ranges = [{"pixel_values": [[4, width], [patches, width], [patches, width]]}]
        quantize_static(graph, {f"tower.{layer}.weight": 8.0 for layer in layers} if precision == "int8" else {})
        path = folder / f"{name}-vision-{precision}.onnx"
        save_model(graph, path)
        yield {"model": name, "graph": f"vision {precision}", "profile": "any", "path": path, "ranges": ranges}


def measure(work: dict[str, Any], target: str) -> dict[str, Any]:
    """Build one engine."""
    path: Path = work["path"]
    engine = path.with_suffix(f".sm{target.replace('.', '')}.engine")
    built = build_apart(BuildJob("tensorrt_rtx", str(path), work["ranges"], str(engine), target))
    size = engine.stat().st_size
    engine.unlink()
    onnx = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())
    return {
        "model": work["model"],
        "graph": work["graph"],
        "profile": work["profile"],
        "target": target,
        "ONNX MB": round(onnx / 1e6, 1),
        "engine MB": round(size / 1e6, 1),
        "seconds": round(built.seconds, 1),
        "CPU s": round(built.cpu_seconds, 1),
        "peak MB": round(built.peak_rss_mb),
    }


def main() -> None:
    """Measure, print a Markdown table and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--targets", default="sm86,sm120")
    parser.add_argument("--profiles", default="10.3,10.16")
    parser.add_argument("--length", type=int, default=2048, help="rows of the cache")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    targets, profiles = [parse_target(name) for name in options.targets.split(",")], options.profiles.split(",")
    rows = []

    def works() -> Iterator[dict[str, Any]]:
        tiny: Any = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
        yield from encoders(tiny, "tiny", options.output, 256)
        yield from decoders(tiny, "tiny", options.output, profiles, options.length)
        yield from decoders(half_billion(), "0.5B random", options.output, profiles, options.length)

    for work in works():
        for target in targets:
            row = measure(work, target)
            rows.append(row)
            if len(rows) == 1:
                print(f"{load_library('tensorrt_rtx').title}\n")
                print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
            print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
    (options.output / "results.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
