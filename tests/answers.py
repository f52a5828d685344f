"""Answers of made-up models, as workers write them, and results made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgetune_runtime.bench.machine import Machine
from edgetune_runtime.bench.options import Options
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.predictions import Prediction, read
from edgetune_runtime.bench.results import Data, Failed, Input, Measured, Report, Results
from edgetune_runtime.bench.scores import STATISTICS, compare, costs, summarise
from edgetune_runtime.timing import STAGES

TARGET = [0.0, 0.0, 10.0, 10.0]
Row = dict[str, Any]


def ground(
    image: str, boxes: Sequence[Sequence[float]], *, truth: Sequence[Sequence[float]] | None = None, number: int = 0
) -> Row:
    """An answer with boxes; without any it is one that could not be read."""
    return row(image, number) | {
        "kind": "ground",
        "text": f"thing {number}",
        "truth": [TARGET] if truth is None else truth,
        "boxes": boxes,
        "status": "found" if boxes else "unparsed",
        "complete": True,
    }


def vqa(image: str, raw: str, expected: list[str], number: int = 0) -> Row:
    """An answer in words."""
    return row(image, number) | {"kind": "vqa", "raw": raw, "expected": expected}


def row(image: str, number: int, *, seconds: float = 1.0, tokens: int = 11) -> Row:
    """What all answers have."""
    timings = dict.fromkeys(STAGES, seconds) | {"tokens": tokens}
    return {"source": f"d.jsonl:{number}", "image": image, "text": "?", "raw": "", "timings": timings}


def part(share: float) -> list[list[float]]:
    """A box whose IoU with the target is `share`."""
    return [[0.0, 0.0, 10.0 * float(share), 10.0]]


def predictions(rows: Iterable[Row]) -> tuple[Prediction, ...]:
    """Answers as the results hold them, with their scores."""
    return tuple(map(read, rows))


def report(rows: Iterable[Row], **changed: Any) -> Report:
    """A worker's report."""
    figures: dict[str, Any] = {"size_bytes": 5_000_000, "peak_rss_bytes": 80_000_000, "peak_gpu_bytes": None}
    more = {"load_s": 0.5, "cold_start_s": 0.9, "engine": "onnx", "precision": "int4", "others_cpu_share": 0.0}
    return Report(**(figures | more | changed), rows=predictions(rows))


def measured(name: str, rows: Sequence[Row], *, baseline: bool = False, **changed: Any) -> Measured:
    """A row that ran, without differences."""
    run = report(rows, **changed)
    common: dict[str, Any] = {"name": name, "path": f"out/{name}", "kind": "bundle", "baseline": baseline}
    return Measured(**common, **costs(run), **summarise(run.rows))


def results(
    runs: Mapping[str, Sequence[Row] | str], *, baseline: str | None = None, **changed: Any
) -> tuple[Results, Answers]:
    """Results and answers as `edgetune bench` makes them; a text instead of answers is the reason of a failed row."""
    answers = {name: predictions(run) for name, run in runs.items() if not isinstance(run, str)}
    rows: list[Measured | Failed] = []
    for name, run in runs.items():
        common: dict[str, Any] = {"name": name, "path": f"out/{name}", "kind": "bundle", "baseline": name == baseline}
        if isinstance(run, str):
            rows.append(Failed(**common, reason=run, exit_code=3))
            continue
        delta = compare(answers[name], answers[baseline]) if baseline in answers and name != baseline else None
        costs_of = costs(report(run, **changed))
        rows.append(Measured(**common, **costs_of, **summarise(answers[name]), delta=delta))
    count = max((len(said) for said in answers.values()), default=1)
    found = Results(
        created="2026-01-02T03:04:05+00:00",
        command="edgetune bench",
        machine=Machine("a CPU", cores=2),
        versions={"python": "3.11"},
        options=Options(threads=1),
        statistics=STATISTICS,
        data=Data("data/d.jsonl", count, "ab" * 32),
        inputs={"data": Input("data/d.jsonl", "cd" * 32)}
        | {f"row {name}": Input(f"out/{name}", name * 8) for name in runs},
        baseline=baseline,
        rows=tuple(rows),
    )
    return found, answers
