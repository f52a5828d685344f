"""How far quantized models are from the model they were made from, and the tables of it."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import cases
import torch
from worker import load_model

T95 = {1: math.inf, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Two-sided 95 % quantiles of Student's t by number of values."""


def evaluate(work: Path, output: Path | None) -> None:
    """Score every result that has no score yet, then print the tables."""
    for folder in cases.case_folders(work):
        results = sorted((work / "results").glob(f"*/{folder.name}/*.safetensors"))
        fresh = [path for path in results if not _scored(path)]
        if fresh:
            _score(folder, fresh)
    rows = _rows(work)
    for model in cases.MODELS:
        print(table(model, [row for row in rows if row["model"] == model]))
    if output:
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _scored(path: Path) -> bool:
    score = path.with_suffix(".score")
    return score.is_file() and score.stat().st_mtime > path.stat().st_mtime


@torch.no_grad()
def _score(folder: Path, results: list[Path]) -> None:
    from safetensors.torch import load_file

    model = load_model(str(folder / "checkpoint"))
    samples = torch.load(folder / "held_out.pt")
    reference = [log_probabilities(model, sample) for sample in samples]
    parameters = dict(model.named_parameters())
    for path in results:
        tensors = load_file(path)
        saved = {name: parameters[name].data for name in tensors}
        for name, tensor in tensors.items():
            assert tensor.shape == parameters[name].shape, f"{path}: {name}"
            parameters[name].data = tensor
        scores = [compare(log_p, model, sample) for log_p, sample in zip(reference, samples, strict=True)]
        for name, tensor in saved.items():
            parameters[name].data = tensor
        mean = {key: statistics.fmean(score[key] for score in scores) for key in scores[0]}
        path.with_suffix(".score").write_text(json.dumps(mean), encoding="utf-8")
        print(folder.name, path.parent.parent.name, path.stem, mean, flush=True)


def log_probabilities(model: Any, sample: dict[str, Any]) -> torch.Tensor:
    """float64 [answer tokens, V] of the next token at each token of the answer, read teacher-forced."""
    inputs = {name: value for name, value in sample.items() if name != "answer_start"}
    logits = model(**inputs).logits[0, sample["answer_start"] - 1 : -1]
    return torch.log_softmax(logits.double(), dim=-1)


def compare(log_p: torch.Tensor, model: Any, sample: dict[str, Any]) -> dict[str, float]:
    """Mean KL(reference || model) in nats over the answer's tokens, and the share with the same most likely token."""
    log_q = log_probabilities(model, sample)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return {"kl": float(kl.mean()), "agreement": float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())}


def _rows(work: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((work / "results").glob("*/*/*.json")):
        model, _, seed = path.parent.name.rpartition("-")
        method, group, symmetry, preset = path.stem.split("-")
        facts = {"library": path.parent.parent.name, "model": model, "seed": int(seed), "method": method}
        facts |= {"format": f"{group} {symmetry}", "preset": preset, **json.loads(path.read_text(encoding="utf-8"))}
        if path.with_suffix(".score").is_file():
            facts |= json.loads(path.with_suffix(".score").read_text(encoding="utf-8"))
        rows.append(facts)
    return rows


def table(model: str, rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a library, method and format; the last columns are means over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["format"], row["library"], row["method"], row["preset"]].append(row)
    ours: dict[str, dict[int, float]] = {row["format"]: {} for row in rows}
    for row in rows:
        if row["library"] == "ours" and row["method"] == "gptq" and "kl" in row:
            ours[row["format"]][row["seed"]] = row["kl"]
    lines = [f"\n{model}\n", "| format | library | method | KL | KL / our GPTQ's | same token | CPU s | MB |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    order = {name: place for place, name in enumerate(["ours", "gptqmodel", "llmcompressor", "autoround"])}
    for key in sorted(groups, key=lambda key: (-int(key[0][1:].split()[0]), key[0], order[key[1]], key[2:])):
        fmt, library, method, preset = key
        name = method if preset == "default" else f"{method}, {preset}"
        good = [row for row in groups[key] if "kl" in row]
        if not good:
            lines.append(f"| {fmt} | {library} | {name} | {groups[key][0].get('error', 'not scored')} | | | | |")
            continue
        kl = [row["kl"] for row in good]
        ratio = [math.log(row["kl"] / ours[fmt][row["seed"]]) for row in good if row["seed"] in ours[fmt]]
        agreement = statistics.fmean(row["agreement"] for row in good)
        timed = [row for row in good if "cpu_seconds" in row] or [{"cpu_seconds": math.nan, "peak_mb": math.nan}]
        seconds, memory = (statistics.median(row[part] for row in timed) for part in ("cpu_seconds", "peak_mb"))
        lines.append(
            f"| {fmt} | {library} | {name} | {interval(kl)} | {ratio_interval(ratio)} | {agreement:.1%} "
            f"| {seconds:.1f} | {memory:.0f} |"
        )
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Mean and half-width of its 95 % t interval."""
    half = T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.5f} ± {half:.5f}"


def ratio_interval(logs: list[float]) -> str:
    """Geometric mean and 95 % t interval of paired ratios given as logarithms."""
    if len(logs) < 2:
        return f"{math.exp(logs[0]):.2f}" if logs else ""
    middle, half = statistics.fmean(logs), T95[len(logs)] * statistics.stdev(logs) / len(logs) ** 0.5
    return f"{math.exp(middle):.2f} ({math.exp(middle - half):.2f}–{math.exp(middle + half):.2f})"
