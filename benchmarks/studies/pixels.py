"""What a picture costs before the vision encoder, and its first product there: normalised pixels beside raw ones.

    python benchmarks/studies/pixels.py --bundle BUNDLE [--picture 1280x960] [--max-pixels 1228800]
        [--rounds 15] [--threads 1]

The picture is a JPEG in memory. Both forms are made and encoded in turns of one run, so that other programs disturb
both alike; medians in milliseconds, and the median of the rounds' ratios. The bundle is of format onnx, dialect ort.
With --max-pixels pictures are resized as if it had been exported with this limit, also a larger one.
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

from edgetune_runtime.backends.base import Device
from edgetune_runtime.backends.onnx.encoder import VisionEncoder
from edgetune_runtime.backends.onnx.engine import PIXELS
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.images.base import Arrays
from edgetune_runtime.images.load import image_hash, load_image
from edgetune_runtime.images.smart import ImageSpec

FORMS = {"normalised": False, "raw": True}


def jpeg(width: int, height: int) -> bytes:
    """A picture with detail at several scales, as a file."""
    generator, layers = np.random.default_rng(0), np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81, 243):
        coarse = generator.integers(0, 256, (cells, cells, 3), np.uint8)
        layers += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray((layers / 5).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--picture", default="1280x960", metavar="WxH")
    parser.add_argument("--max-pixels", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    file, bundle = jpeg(*map(int, options.picture.split("x"))), Bundle.load(options.bundle)
    spec, image = bundle.spec, load_image(file)
    if options.max_pixels is not None:
        assert isinstance(spec, ImageSpec), "max-pixels is a limit of smart resize"
        spec = spec.bounded(max_pixels=options.max_pixels)
    roles = {"normalised": "vision", "raw": PIXELS}
    encoders = {form: VisionEncoder(bundle.files[role], Device("cpu"), options.threads) for form, role in roles.items()}

    def prepare(raw: bool) -> Arrays:
        return spec.encoder_arrays([spec.arrays(image, raw=raw)])

    taken = {form: prepare(raw) for form, raw in FORMS.items()}
    seen = {form: encode(taken[form]).embeddings for form, encode in encoders.items()}
    steps: dict[str, Callable[[], Any]] = {"load": lambda: load_image(file), "hash": lambda: image_hash(image)}
    for form, raw in FORMS.items():
        steps[f"arrays, {form}"] = partial(prepare, raw)
        steps[f"vision, {form}"] = partial(encoders[form], taken[form])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    ratios = {
        step: statistics.median(
            raw / usual for usual, raw in zip(*(seconds[f"{step}, {form}"] for form in FORMS), strict=True)
        )
        for step in ("arrays", "vision")
    }
    off = np.linalg.norm(seen["raw"] - seen["normalised"]) / np.linalg.norm(seen["normalised"])
    told = {
        "picture": options.picture,
        "image tokens": len(seen["raw"]),
        "bytes": {form: arrays["pixel_values"].nbytes for form, arrays in taken.items()},
        "ms": {name: round(1e3 * statistics.median(each), 2) for name, each in seconds.items()},
        "raw / normalised": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "features differ by": float(f"{off:.1e}"),
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
