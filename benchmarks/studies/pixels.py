"""What a picture costs before the vision encoder: raw pixels, normalised ones, and those as they were made before.

    python benchmarks/studies/pixels.py [--picture 1280x960] [--max-pixels 1310720] [--rounds 25] [--bundle BUNDLE]

A JPEG file in memory is decoded, hashed and preprocessed as the published Qwen3-VL are (patch 16, merge 2, two frames),
in turns of one run. Milliseconds are the processor's, of this one thread, which other programs disturb least: medians,
and medians of the rounds' ratios. A bundle of smart resize, format onnx and dialect ort adds what its encoders take (by
the clock, one thread) and how far their features are from each other.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from edgetune_runtime.backends.onnx.encoder import VisionEncoder
from edgetune_runtime.backends.onnx.engine import PIXELS
from edgetune_runtime.backends.values import Device
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.images.load import image_hash, load_image
from edgetune_runtime.images.smart import ImageSpec, geometry_of

QWEN3_VL = ImageSpec(
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    min_pixels=65536,
    max_pixels=16777216,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    rescale=1 / 255,
    resample=3,
)


def jpeg(width: int, height: int) -> bytes:
    """A picture with detail at several scales, as a file."""
    generator, layers = np.random.default_rng(0), np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81, 243):
        coarse = generator.integers(0, 256, (cells, cells, 3), np.uint8)
        layers += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray((layers / 5).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def before(image: Image.Image, spec: ImageSpec) -> Any:
    """Normalised patches as they were made up to commit 09385c7: looked up one by one where they go, then repeated."""
    seen, patch, merge = geometry_of(image.width, image.height, spec), spec.patch_size, spec.merge_size
    rgb = np.asarray(image.resize((seen.resized_width, seen.resized_height), Image.Resampling(spec.resample)))
    rows, columns = seen.resized_height // spec.factor, seen.resized_width // spec.factor
    groups = rgb.reshape(rows, merge, patch, columns, merge, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    values = spec.scaling.table()[np.arange(3)[:, None, None], groups]
    repeated = np.repeat(values[:, :, :, :, :, None], spec.frames, axis=5)
    return np.ascontiguousarray(repeated.reshape(rows * columns * merge**2, -1))


def in_turns(
    steps: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of each step, and the median ratio of each to the first."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = clock()
            step()
            spent[name].append(clock() - began)
    first = next(iter(spent.values()))
    ratios = {name: statistics.median(np.divide(each, first)) for name, each in spent.items()}
    return (
        {name: round(1e3 * statistics.median(each), 2) for name, each in spent.items()},
        {name: round(float(ratio), 3) for name, ratio in ratios.items()},
    )


def preparing(file: bytes, spec: ImageSpec, rounds: int) -> dict[str, Any]:
    """What comes before the encoder."""
    image = load_image(file)

    def whole(preprocess: Callable[[Image.Image], Any]) -> None:
        loaded = load_image(file)
        image_hash(loaded)
        preprocess(loaded)

    ways: dict[str, Callable[[Image.Image], Any]] = {
        "before": partial(before, spec=spec),
        "normalised": spec.arrays,
        "raw": partial(spec.arrays, raw=True),
    }
    spent, ratios = in_turns({name: partial(whole, way) for name, way in ways.items()}, rounds, time.thread_time)
    parts: dict[str, Callable[[], Any]] = {"load": partial(load_image, file), "hash": partial(image_hash, image)}
    parts |= {f"arrays, {name}": partial(way, image) for name, way in ways.items()}
    taken = {name: spec.arrays(image, raw=name == "raw")["pixel_values"] for name in ("normalised", "raw")}
    assert np.array_equal(before(image, spec), taken["normalised"])
    return {
        "CPU ms": spent,
        "of before": ratios,
        "parts, CPU ms": in_turns(parts, rounds, time.thread_time)[0],
        "bytes": {name: values.nbytes for name, values in taken.items()},
    }


def encoding(file: bytes, spec: ImageSpec, bundle: Bundle, rounds: int) -> dict[str, Any]:
    """What a bundle's encoders make of it."""
    image = load_image(file)
    roles = {"normalised": "vision", "raw": PIXELS}
    encoders = {name: VisionEncoder(bundle.files[role], Device("cpu"), 1) for name, role in roles.items()}
    taken = {name: spec.arrays(image, raw=name == "raw") for name in roles}
    usual, ours = (encoders[name](taken[name]).embeddings for name in roles)
    steps: dict[str, Callable[[], Any]] = {name: partial(encoders[name], taken[name]) for name in roles}
    spent, ratios = in_turns(steps, rounds, time.perf_counter)
    off = float(np.linalg.norm(ours - usual) / np.linalg.norm(usual))
    return {"image tokens": len(ours), "vision, ms": spent, "of normalised": ratios, "features differ by": off}


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", default="1280x960", metavar="WxH")
    parser.add_argument("--max-pixels", type=int)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--bundle")
    options = parser.parse_args()
    file, bundle = jpeg(*map(int, options.picture.split("x"))), options.bundle and Bundle.load(options.bundle)
    spec = bundle.spec if bundle else QWEN3_VL
    assert isinstance(spec, ImageSpec), "the bundle's rule is not smart resize"
    if options.max_pixels is not None:
        spec = spec.bounded(min(spec.min_pixels, options.max_pixels), options.max_pixels)
    told = {"picture": options.picture, **preparing(file, spec, options.rounds)}
    if bundle:
        told |= encoding(file, spec, bundle, options.rounds)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
