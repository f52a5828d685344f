"""What int8 costs and saves in the vision encoder: float32, dynamic, static and static in standard operators, in turns.

    python benchmarks/studies/vision_int8.py --checkpoint DIR --weights SET --data test.jsonl
        [--records 500] [--threads 1]

All four encoders answer every record with one int4 decoder. Times are of the encoder alone, in one process, the four
taking turns record by record; cosines are with the float32 encoder's features, over image tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetune_core.weightset import WeightSet
from edgetune_export.check.answers import Answers
from edgetune_export.check.reference import make_case
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.embed import build_embed
from edgetune_export.graph import save_model
from edgetune_export.job import ExportJob
from edgetune_export.settings import ExportSettings
from edgetune_export.vision.graph import build_vision
from edgetune_runtime.backends.onnx.engine import OnnxBackend
from edgetune_runtime.bench.metrics import SampleScore, sample_iou, summarize
from edgetune_runtime.images.load import load_image
from edgetune_runtime.records import Record, read_records

ENCODERS = {
    "fp32": ExportSettings(vision_precision="fp32"),
    "int8": ExportSettings(vision_precision="int8"),
    "int8-static": ExportSettings(vision_precision="int8-static"),
    "int8-static, standard operators": ExportSettings(vision_precision="int8-static", dialect="plain"),
}
PRODUCTS = ("MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "QuantizeLinear", "Gemm")


def main() -> None:
    """Build the encoders, run all records and print a JSON report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="weight set with the encoder's ranges")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        job = ExportJob.open(options.checkpoint, work, ExportSettings(), weights=WeightSet.load(options.weights))
        graphs = build(job)
        backends = {
            name: OnnxBackend(
                vision=work / f"{number}.onnx",
                embed=work / "embed.onnx",
                decoder=work / "decoder.onnx",
                threads=options.threads,
            )
            for number, name in enumerate(ENCODERS)
        }
        records = [record for record in read_records(options.data) if record.boxes is not None][: options.records]
        print(json.dumps({"threads": options.threads, "products": graphs, **measure(job, backends, records)}, indent=2))


def build(job: ExportJob) -> dict[str, dict[str, int]]:
    """Write the graphs into the job's folder; how many products of each kind the encoders have."""
    save_model(build_embed(job.decoder, "fp32"), job.work / "embed.onnx")
    decoder = build_decoder(job.decoder, lambda graph, spec: OrtDialect(graph, spec, ir.DataType.FLOAT))
    save_model(decoder, job.work / "decoder.onnx")
    told = {}
    for number, (name, options) in enumerate(ENCODERS.items()):
        model = build_vision(replace(job, options=options))
        kinds = Counter(node.op_type for node in model.graph)
        told[name] = {kind: kinds[kind] for kind in PRODUCTS if kinds[kind]}
        save_model(model, job.work / f"{number}.onnx")
    return told


def measure(job: ExportJob, backends: dict[str, OnnxBackend], records: list[Record]) -> dict[str, Any]:
    """Encode and answer every record with every encoder."""
    answers = Answers(job.checkpoint)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    cosines: dict[str, list[float]] = {name: [] for name in backends}
    scores: dict[str, list[SampleScore]] = {name: [] for name in backends}
    texts: dict[str, list[str]] = {name: [] for name in backends}
    for number, record in enumerate(records):
        request = record.prompt(job.checkpoint.family)
        case = make_case(job.checkpoint, record.source, load_image(record.image), request, 64)
        turn = number % len(backends)
        order = [*backends][turn:] + [*backends][:turn]
        features = {}
        for name in order:
            began = time.perf_counter()
            features[name] = answers.encode(backends[name], [case])
            seconds[name].append(time.perf_counter() - began)
        exact = features["fp32"].embeddings
        for name, backend in backends.items():
            ours = features[name].embeddings
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
            cosines[name].append(float(((ours * exact).sum(axis=1) / lengths).mean()))
            encoded = (features[name].embeddings, *features[name].deepstack)
            answer = answers.read(case, answers.go_on(backend, case, encoded, []).tokens)
            texts[name].append(answer.text)
            boxes = np.array([found.box for found in answer.detections]).reshape(-1, 4)
            assert record.boxes is not None
            overlap = sample_iou(boxes, record.boxes) if len(record.boxes) else None
            scores[name].append(SampleScore(overlap, answer.status))
    return {
        "records": len(records),
        "rows": {
            name: {
                "median_ms": statistics.median(seconds[name]) * 1e3,
                "speed_up": statistics.median(a / b for a, b in zip(seconds["fp32"], seconds[name], strict=True)),
                "mean_cosine": statistics.fmean(cosines[name]),
                "min_cosine": min(cosines[name]),
                "same_answers": sum(a == b for a, b in zip(texts["fp32"], texts[name], strict=True)) / len(records),
                "scores": summarize(scores[name]).to_dict(),
            }
            for name in backends
        },
    }


if __name__ == "__main__":
    main()
