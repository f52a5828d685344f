"""Which libraries load our bundles, and whether they compute what the bundles' weights stand for.

    python load_checks.py --work W --gptqmodel PYTHON --llmcompressor PYTHON [--node FOLDER]

PYTHON is the interpreter of an environment with that library (docs/peers.md says how to make them), FOLDER one where
`npm install @huggingface/transformers` ran. For a small Qwen2.5-VL and Qwen3-VL: calibrates, writes every format from
the one weight set, and compares. Checkpoint formats: logits of three held-out records with images against transformers
with the dequantized weights. ONNX: greedy tokens of a text prompt against our runtime's on the same files, which the
export has already compared with transformers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import text_engines
from worker import load_model

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
CHECKS = [  # (format, reader, which environment)
    ("gptq", "transformers-gptqmodel", "gptqmodel"),
    ("awq", "transformers-gptqmodel", "gptqmodel"),
    ("gptq", "gptqmodel", "gptqmodel"),
    ("awq", "gptqmodel", "gptqmodel"),
    ("compressed-tensors", "transformers", "llmcompressor"),
]
RECORDS = 3


def main() -> None:
    """Prepare, load everywhere, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gptqmodel", required=True)
    parser.add_argument("--llmcompressor", required=True)
    parser.add_argument("--node", type=Path)
    options = parser.parse_args()
    work = options.work.absolute()
    print("| family | format | reader | kernel | logits, rel. error | result |\n|---|---|---|---|---|---|")
    for family in FAMILIES:
        folder = prepare(work, family)
        for kind, reader, environment in CHECKS:
            row(family, kind, reader, read(folder, kind, reader, getattr(options, environment)))
        row(family, "onnx", "onnxruntime-genai", text_engines.genai(folder / "onnx"))
        if options.node:
            row(
                family,
                "onnx",
                "transformers.js",
                text_engines.transformers_js(folder / "onnx", options.node.absolute()),
            )


def row(family: str, kind: str, reader: str, found: dict[str, Any]) -> None:
    """Print a line of the table."""
    error = f"{found['error']:.1e}" if "error" in found else ""
    print(f"| {family} | {kind} | {reader} | {found.get('kernel', '')} | {error} | {found['result']} |", flush=True)


def prepare(work: Path, family: str) -> Path:
    """Bundles of every format and the reference's logits."""
    import torch

    from edgetune.export.dequantize import apply_weights
    from edgetune_runtime.quant.weightset import WeightSet

    case, folder = work / "cases" / f"{family}-0", work / "load" / family
    if not (case / "held_out.pt").is_file():
        cases.prepare(work, 1)
    if (folder / "reference.pt").is_file():
        return folder
    checkpoint, weights = case / "checkpoint", folder / "weights"
    calibrate = ["--data", case / "data/train.jsonl", "--group-size", 32, "--output", weights]
    edgetune("calibrate", "--checkpoint", checkpoint, *calibrate)
    formats = "gptq,awq,compressed-tensors,onnx"
    edgetune("export", "--checkpoint", checkpoint, "--weights", weights, "--formats", formats, "--output", folder)
    samples = torch.load(case / "held_out.pt")[:RECORDS]
    for sample in samples:
        sample.pop("answer_start")
    torch.save(samples, folder / "samples.pt")
    model = load_model(str(checkpoint))
    apply_weights(model, WeightSet.load(weights))
    with torch.no_grad():
        torch.save([model(**sample).logits[0] for sample in samples], folder / "reference.pt")
    return folder


def edgetune(*words: Any) -> None:
    """Run a verb."""
    subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], check=True, stdout=sys.stderr)


def read(folder: Path, kind: str, reader: str, python: str) -> dict[str, Any]:
    """Load a bundle in another environment: its kernel, and the largest relative error of a record's logits."""
    import torch

    script, logits = Path(__file__).with_name("load_reader.py"), folder / f"{kind}.{reader}.pt"
    logits.unlink(missing_ok=True)
    command = [python, script, reader, folder / kind, folder / "samples.pt", logits]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if not logits.is_file():
        return {"result": f"does not load: {done.stderr.strip().splitlines()[-1][:200]}"}
    pairs = list(zip(torch.load(folder / "reference.pt"), torch.load(logits), strict=True))
    error = max(float((ours - theirs).norm() / ours.norm()) for ours, theirs in pairs)
    kernel = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("LINEAR"))
    return {"kernel": kernel, "error": error, "result": "same logits" if error <= 1e-3 else "loads"}


if __name__ == "__main__":
    main()
