"""Answers of made-up models, as workers write them, and results made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_runtime.bench.plan import SCHEMA
from edgetune_runtime.bench.scores import STATISTICS, compare, scored, summarise
from edgetune_runtime.timing import STAGES

TARGET = [0.0, 0.0, 10.0, 10.0]
Row = dict[str, Any]


def ground(
    image: str, boxes: Sequence[Sequence[float]], *, truth: Sequence[Sequence[float]] | None = None, number: int = 0
) -> Row:
    """An answer with boxes; without any it is one that could not be read."""
    status = "found" if boxes else "unparsed"
    return row(image, number) | {
        "kind": "ground",
        "text": f"thing {number}",
        "truth": [TARGET] if truth is None else truth,
        "boxes": boxes,
        "status": status,
        "complete": True,
    }


def vqa(image: str, raw: str, expected: list[str], number: int = 0) -> Row:
    """An answer in words."""
    return row(image, number) | {"kind": "vqa", "raw": raw, "expected": expected}


def row(image: str, number: int, *, seconds: float = 1.0, tokens: int = 11) -> Row:
    """What all answers have."""
    timings = dict.fromkeys(STAGES, seconds) | {"tokens": tokens}
    return {"source": f"d.jsonl:{number}", "image": image, "raw": "", "timings": timings}


def part(share: float) -> list[list[float]]:
    """A box whose IoU with the target is `share`."""
    return [[0.0, 0.0, 10.0 * share, 10.0]]


def report(rows: list[Row], **costs: Any) -> Row:
    """A worker's report."""
    figures = {"size_bytes": 5_000_000, "peak_rss_bytes": 80_000_000, "peak_gpu_bytes": None, "load_s": 0.5}
    more = {"cold_start_s": 0.9, "engine": "onnx", "precision": "int4", "others_cpu_share": 0.0}
    return {"schema": 1, **figures, **more, **costs, "rows": rows}


def results(
    runs: Mapping[str, list[Row] | str], *, baseline: str | None = None, **costs: Any
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Results and answers as `edgetune bench` makes them; a text instead of answers is the reason of a failed row."""
    answers = {name: scored(run) for name, run in runs.items() if not isinstance(run, str)}
    rows = []
    for name, run in runs.items():
        line: Row = {"name": name, "path": f"out/{name}", "kind": "bundle", "baseline": name == baseline}
        if isinstance(run, str):
            line |= {"status": "failed", "reason": run, "exit_code": 3}
        else:
            line |= {"status": "ok"} | summarise(report(run, **costs), answers[name])
            if baseline in answers and name != baseline:
                line["delta"] = compare(answers[name], answers[str(baseline)])
        rows.append(line)
    hashes = {f"row {name}": {"path": f"out/{name}", "sha256": name * 8} for name in runs}
    count = max((len(said) for said in answers.values()), default=0)
    found = {
        "schema": SCHEMA,
        "created": "2026-01-02T03:04:05+00:00",
        "command": "edgetune bench",
        "machine": {"cpu": "a CPU", "board": None, "cores": 2},
        "versions": {"python": "3.11"},
        "options": {"threads": 1, "max_new_tokens": 128},
        "statistics": dict(STATISTICS),
        "data": {"path": "data/d.jsonl", "records": count, "images_sha256": "ab" * 32},
        "inputs": {"data": {"path": "data/d.jsonl", "sha256": "cd" * 32}} | hashes,
        "baseline": baseline,
        "rows": rows,
    }
    return found, answers
