"""What each way to quantize the weights costs in boxes: the tables of docs/quantization.md.

Usage, from the root of the repository:

    python benchmarks/studies/weight_study.py --output DIR [--scenes 501] [--jobs 2] [--device cpu] [--only NAME ...]

Every variant is calibrated by `edgetune.calibrate` as a user would, on training scenes of the tiny model's world
(`examples/tiny`), and answers the same held-out scenes. All share one float32 vision encoder, head and embedding and
their activations are not rounded, so that only the decoder's weights differ, unless a variant says otherwise. Rows run
beside each other on `--jobs` cores: nothing here is timed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

import edgetune
from edgetune_calibrate.quantize import DecoderSettings, quantize_decoder
from edgetune_calibrate.solve import SolveSettings
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.processes import apart
from edgetune_core.stage import run_stage
from edgetune_core.weightset import SCHEMA, WeightSet, write_block
from edgetune_export.checkpoint import open_checkpoint
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.graph import save_model
from edgetune_runtime.backends import Arrays, ImageFeatures
from edgetune_runtime.backends.onnx.engine import OnnxBackend
from edgetune_runtime.bench.predictions import Prediction, read
from edgetune_runtime.bench.scores import compare, summarise
from edgetune_runtime.bench.worker import predict
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.manifest import sha256_file, sha256_tree
from edgetune_runtime.records import Record, read_records
from edgetune_runtime.session import Session
from edgetune_runtime.tokens import TextTokenizer
from edgetune_runtime.typed_json import encode

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "tiny" / "model"
BASELINE = "fp32"
MIXED = (3, 4, 8)
BALANCED = dict.fromkeys(("image", "prompt", "answer"), 1.0)


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        title: what the table calls it.
        calibrate: options of `edgetune.calibrate`; None for weights as they are.
        text: calibrate on plain text instead of on records.
        level: accuracy_level of the products; 4 rounds activations to int8 by block, as bundles for CPUs do.
    """

    title: str
    calibrate: Mapping[str, Any] | None = None
    text: bool = False
    level: int = 0


def _solved(title: str, method: str, group: int, *, text: bool = False, level: int = 0, **more: Any) -> Variant:
    return Variant(title, {"method": method, "group_sizes": (group,), **more}, text=text, level=level)


VARIANTS = {
    BASELINE: Variant("merged model, float32"),
    "gptq-g128": _solved("GPTQ, g128", "gptq", 128),
    "rtn-g128": _solved("RTN, g128", "rtn", 128),
    "gptq-g32": _solved("GPTQ, g32", "gptq", 32),
    "rtn-g32": _solved("RTN, g32", "rtn", 32),
    "gptq-g128-sym": _solved("GPTQ symmetric, g128", "gptq", 128, symmetric=True),
    "gptq-g32-sym": _solved("GPTQ symmetric, g32", "gptq", 32, symmetric=True),
    "rtn-g128-sym": _solved("RTN symmetric, g128", "rtn", 128, symmetric=True),
    "awq-g128": _solved("AWQ, g128", "awq", 128),
    "awq-g32": _solved("AWQ, g32", "awq", 32),
    "gptq-g128-head4": _solved("GPTQ, g128, head int4 too", "gptq", 128, head=4),
    "gptq-g128-int8": _solved("GPTQ, g128, activations rounded to int8", "gptq", 128, level=4),
    "gptq-text": _solved("GPTQ, g128, calibrated on plain text", "gptq", 128, text=True),
    "gptq-balanced": _solved("GPTQ, g128, image = prompt = answer", "gptq", 128, modality_weights=BALANCED),
    "gptq-3bit": _solved("GPTQ 3 bits, g128", "gptq", 128, bits=(3,)),
    "rtn-3bit": _solved("RTN 3 bits, g128", "rtn", 128, bits=(3,)),
    "gptq-3bit-g32": _solved("GPTQ 3 bits, g32", "gptq", 32, bits=(3,)),
    "awq-3bit": _solved("AWQ 3 bits, g128", "awq", 128, bits=(3,)),
    "gptq-3bit-text": _solved("GPTQ 3 bits, g128, plain text", "gptq", 128, bits=(3,), text=True),
    "mixed-3.98": _solved("GPTQ, 3, 4 or 8 bits by layer in 3.98 MB", "gptq", 128, bits=MIXED, budget_mb=3.98362),
    "mixed-3.44": _solved("GPTQ, 3, 4 or 8 bits by layer in 3.44 MB", "gptq", 128, bits=MIXED, budget_mb=3.44448),
    "gptq-3bit-balanced": _solved(
        "GPTQ 3 bits, g128, image = prompt = answer", "gptq", 128, bits=(3,), modality_weights=BALANCED
    ),
}


def main() -> None:
    """Build what is missing under the output folder, answer, and write table.md and results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=501, help="held-out scenes, four records each")
    parser.add_argument("--samples", type=int, default=128, help="records to calibrate on")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these records")
    parser.add_argument("--jobs", type=int, default=2, help="cores to use")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to calibrate")
    parser.add_argument("--checkpoint", type=Path, default=MODEL)
    parser.add_argument("--domain", choices=("base", "night"), default="base")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="besides the baseline")
    options = parser.parse_args()

    chosen = {BASELINE, *(options.only or VARIANTS)}
    variants = {name: variant for name, variant in VARIANTS.items() if name in chosen}
    data = _data(options)
    apart(edgetune.export, checkpoint=options.checkpoint, precision="fp32", output=_bundle(options))
    answers = {BASELINE: _row(BASELINE, options, data)}  # first, for it encodes the pictures for all
    with ProcessPoolExecutor(options.jobs) as pool:
        others = [name for name in variants if name != BASELINE]
        answers |= zip(others, pool.map(partial(_row, options=options, data=data), others), strict=True)
    rows = [_summary(name, answers) for name in variants]
    result = {"data": sha256_file(data / "test.jsonl"), "samples": options.samples, "seed": options.seed, "rows": rows}
    (options.output / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    text = _table(rows)
    (options.output / "table.md").write_text(text)
    print(text)


def _data(options: argparse.Namespace) -> Path:
    """Write the scenes: training pictures to calibrate on, others to be measured on."""
    folder: Path = options.output / "data"
    if not (folder / "test.jsonl").is_file():
        counts = ("--train", 200, "--val", 1, "--test", options.scenes, "--queries", 4)
        words = (ROOT / "examples/tiny/make_data.py", "--output", folder, "--domain", options.domain, *counts)
        subprocess.run([sys.executable, *map(str, words)], check=True)
    return folder


def _bundle(options: argparse.Namespace) -> Path:
    folder: Path = options.output / "bundle-fp32"
    return folder


def _row(name: str, options: argparse.Namespace, data: Path) -> list[Prediction]:
    """Build one variant and answer all records with it, unless that is done."""
    place: Path = options.output / "answers" / f"{name}-{options.seed}.json"
    if not place.is_file():
        decoder = _decoder(name, options, data)
        answers = _answer(decoder, options, read_records(data / "test.jsonl"))
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps([answer.to_dict() for answer in answers]))
        print(f"done: {name}", file=sys.stderr, flush=True)
    return [read(row) for row in json.loads(place.read_text())]


def _decoder(name: str, options: argparse.Namespace, data: Path) -> Path:
    """Calibrate a variant and write its decoder."""
    variant, output = VARIANTS[name], options.output
    place: Path = output / "decoders" / f"{name}-{options.seed}" / "decoder.onnx"
    if place.is_file():
        return place
    weights = None if variant.calibrate is None else _calibrate(name, options, data)
    checkpoint = open_checkpoint(options.checkpoint)
    decoder = DecoderWeights(
        checkpoint.model,
        checkpoint.modules,
        layers_format=None,
        head_format=None,
        weights=weights,
        values=checkpoint.streamed.values,
    )
    graph = build_decoder(
        decoder, lambda graph, spec: OrtDialect(graph, spec, ir.DataType.FLOAT, accuracy_level=variant.level)
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    save_model(graph, place)
    return place


def _calibrate(name: str, options: argparse.Namespace, data: Path) -> WeightSet:
    variant = VARIANTS[name]
    assert variant.calibrate is not None
    weights: Path = options.output / "sets" / f"{name}-{options.seed}"
    weights.parent.mkdir(parents=True, exist_ok=True)
    if variant.text:
        _calibrate_on_text(variant.calibrate, options, weights)
    else:
        apart(
            edgetune.calibrate,
            checkpoint=options.checkpoint,
            data=data / "train.jsonl",
            evaluation=data / "test.jsonl",
            output=weights,
            samples=options.samples,
            device=options.device,
            precision="fp32",
            seed=options.seed,
            **variant.calibrate,
        )
    return WeightSet.load(weights)


def _calibrate_on_text(chosen: Mapping[str, Any], options: argparse.Namespace, output: Path) -> None:
    """Calibrate as tools do that know no pictures: on prose, here CPython's own documentation of its language."""
    (bits,), (group_size,) = chosen.get("bits", (4,)), chosen["group_sizes"]
    solve = SolveSettings(bits=bits, group_size=group_size)
    source = HubCheckpoint.open(options.checkpoint)
    prose = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    ids = source.tokenizer.encode(prose)
    length = 128
    rows = [torch.tensor([ids[start : start + length]]) for start in range(0, options.samples * length, length)]
    batches = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]

    def build(work: Path) -> dict[str, Any]:
        model = source.load_model(torch.float32)
        linears: dict[str, Any] = {}
        settings = DecoderSettings(solve=solve)
        for block in quantize_decoder(model, source.modules, batches, settings, device=options.device):
            file = f"blocks/{block.index:03d}.safetensors"
            linears |= write_block(work, file, block.weights, block.overrides)["linears"]
        fields = {"schema": SCHEMA, "method": "gptq", "linears": linears, "overrides": {}, "vision_ranges": None}
        told = {"samples": len(batches), "text": "pydoc_data.topics", "sources": []}
        origin = {"path": str(options.checkpoint), "sha256": sha256_tree(options.checkpoint)}
        return {"weightset": fields | {"calibration": told, "checkpoint": origin}}

    settings = {"text": True, "samples": options.samples, **chosen}
    run_stage("calibrate", output, inputs={"checkpoint": options.checkpoint}, settings=settings, build=build)


class KeptPictures(OnnxBackend):
    """The bundle's backend with another decoder; pictures are encoded once for all decoders."""

    def __init__(self, bundle: Bundle, decoder: Path, kept: Path) -> None:
        super().__init__(vision=bundle.files["vision"], embed=bundle.files["embed"], decoder=decoder, threads=1)
        self._kept = kept
        kept.mkdir(exist_ok=True)

    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """Look the features up on disk, or compute and keep them."""
        place = self._kept / f"{hashlib.sha256(images['pixel_values'].tobytes()).hexdigest()}.npz"
        if place.is_file():
            with np.load(place) as file:
                arrays = [file[name] for name in file.files]
            return ImageFeatures(arrays[0], tuple(arrays[1:]))
        features = super().encode_images_impl(images)
        np.savez(place, features.embeddings, *features.deepstack)
        return features


def _answer(decoder: Path, options: argparse.Namespace, records: Sequence[Record]) -> list[Prediction]:
    """Answer all records, as the runtime's worker does."""
    bundle = Bundle.load(_bundle(options))
    backend = KeptPictures(bundle, decoder, options.output / "pictures")
    session = Session(bundle, backend, TextTokenizer(bundle.files["tokenizer"]))
    return [predict(session, record, max_new_tokens=128) for record in records]


def _summary(name: str, answers: Mapping[str, Sequence[Prediction]]) -> dict[str, Any]:
    figures = summarise(answers[name])
    row = {"name": name, "title": VARIANTS[name].title, **{kind: encode(figures[kind]) for kind in ("ground", "vqa")}}
    return row if name == BASELINE else row | {"delta": encode(compare(answers[name], answers[BASELINE]))}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown; shares and differences in percent."""
    head = ("weights", "Acc@0.5", "Δ Acc@0.5", "Δ Acc@0.9", "box IoU to the merged model", "moved", "VQA")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ground, delta = row["ground"], row.get("delta")
        cells = [row["title"], f"{100 * ground['acc50']:.1f}"]
        if delta:
            iou, moved = delta["drift"]["iou_interval"], delta["drift"]["moved"]
            cells += [_interval(delta["acc50"]), _interval(delta["acc90"])]
            cells += [f"{iou['value']:.4f} [{iou['low']:.4f}, {iou['high']:.4f}]", f"{100 * moved:.1f}"]
        else:
            cells += ["", "", "", ""]
        cells.append(f"{100 * row['vqa']['accuracy']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(delta: Mapping[str, float]) -> str:
    value, low, high = (100 * delta[key] for key in ("value", "low", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
