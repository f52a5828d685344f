"""Which libraries load our bundles, and whether they compute what the bundles' weights stand for.

    python load_checks.py --work W --gptqmodel PYTHON --llmcompressor PYTHON [--node FOLDER]

PYTHON is the interpreter of an environment with that library (docs/peers.md says how to make them), FOLDER one where
`npm install @huggingface/transformers` ran. For a small Qwen2.5-VL and Qwen3-VL: calibrates, writes every format from
the one weight set, and compares. Checkpoint formats: the weight of every quantized layer, and the logits of three
held-out records with images, against transformers with the dequantized weights. GPTQModel multiplies AWQ weights in
float16 whatever the model's dtype; "float16" is what that alone does to transformers' logits. ONNX: greedy tokens of a
text prompt against our runtime's on the same files, which the export has already compared with transformers.
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
TOLERANCE = 1e-3


def main() -> None:
    """Prepare, load everywhere, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gptqmodel", required=True)
    parser.add_argument("--llmcompressor", required=True)
    parser.add_argument("--node", type=Path)
    options = parser.parse_args()
    work = options.work.absolute()
    print("| family | format | reader | kernel | weights | logits | float16 | result |")
    print("|---|---|---|---|---|---|---|---|")
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
    errors = [f"{found[part]:.1e}" if part in found else "" for part in ("weights", "logits", "half")]
    columns = (family, kind, reader, found.get("kernel", ""), *errors, found["result"])
    print(f"| {' | '.join(columns)} |", flush=True)


def prepare(work: Path, family: str) -> Path:
    """Bundles of every format, and what the dequantized model says."""
    import torch

    sys.path.insert(0, str(cases.REPOSITORY / "tests"))
    import builders  # type: ignore[import-not-found, unused-ignore]

    case, folder = work / "cases" / f"{family}-0", work / "load" / family
    if not (case / "held_out.pt").is_file():
        cases.prepare(work, 1)
    if (folder / "reference.pt").is_file():
        return folder
    checkpoint, weights = folder / "checkpoint", folder / "weights"
    if not checkpoint.is_dir():
        build = getattr(builders, f"build_{family}")
        # As published checkpoints are: what is not quantized fits into float16 as well.
        build(checkpoint, layers=4, hidden=256, heads=4, kv_heads=2, dtype=torch.bfloat16)
    calibrate = ["--data", case / "data/train.jsonl", "--group-size", 32, "--output", weights]
    edgetune("calibrate", "--checkpoint", checkpoint, *calibrate)
    formats = "gptq,awq,compressed-tensors,onnx"
    export = ["--weights", weights, "--formats", formats, "--names", "transformers", "--output", folder]
    edgetune("export", "--checkpoint", checkpoint, *export)
    samples = torch.load(case / "held_out.pt")[:RECORDS]
    for sample in samples:
        sample.pop("answer_start")
    torch.save(samples, folder / "samples.pt")
    torch.save(reference(checkpoint, weights, samples), folder / "reference.pt")
    return folder


def reference(checkpoint: Path, weights: Path, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Logits of the dequantized model ("half": with quantized layers' products in float16), and its weights."""
    import torch

    from edgetune_core.weightset import WeightSet
    from edgetune_export.dequantize import apply_weights

    model, quantized = load_model(str(checkpoint)), WeightSet.load(weights)
    apply_weights(model, quantized)
    layers = {name: model.get_submodule(name) for name in quantized.names}
    weight_of = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    found: dict[str, Any] = {"weights": weight_of}
    with torch.no_grad():
        found["logits"] = [model(**sample).logits[0] for sample in samples]
        for layer in layers.values():
            layer.half()
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].half(),))
            layer.register_forward_hook(lambda _, inputs, output: output.float())
        found["half"] = [model(**sample).logits[0] for sample in samples]
    return found


def edgetune(*words: Any) -> None:
    """Run a verb."""
    subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], check=True, stdout=sys.stderr)


def read(folder: Path, kind: str, reader: str, python: str) -> dict[str, Any]:
    """Load a bundle in another environment: its kernel, and its largest relative errors (Euclidean norms)."""
    import torch

    script, output = Path(__file__).with_name("load_reader.py"), folder / f"{kind}.{reader}.pt"
    output.unlink(missing_ok=True)
    command = [python, str(script), reader, str(folder / kind), str(folder / "samples.pt"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if not output.is_file():
        return {"result": f"does not load: {done.stderr.strip().splitlines()[-1][:200]}"}
    expected, theirs = torch.load(folder / "reference.pt"), torch.load(output)
    found: dict[str, Any] = {"kernel": next(line[7:] for line in done.stdout.splitlines() if line.startswith("LINEAR"))}
    found["weights"] = max(distance(values, theirs["weights"][name]) for name, values in expected["weights"].items())
    found["logits"] = max(map(distance, expected["logits"], theirs["logits"]))
    tolerance = TOLERANCE
    if kind == "awq":
        found["half"] = max(map(distance, expected["logits"], expected["half"]))
        tolerance = max(TOLERANCE, 2 * found["half"])
    same = found["weights"] <= TOLERANCE and found["logits"] <= tolerance
    return {**found, "result": "same" if same else "other logits"}


def distance(ours: Any, theirs: Any) -> float:
    """Norm of the difference, relative to ours."""
    return float((ours - theirs).norm() / ours.norm())


if __name__ == "__main__":
    main()
