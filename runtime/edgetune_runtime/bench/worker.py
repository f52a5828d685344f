"""Answer the records of an evaluation set with one bundle, in one process, and write what was said and what it cost.

`python -m edgetune_runtime.bench.worker --bundle DIR --data eval.jsonl --output out.json` needs the runtime package
alone, so the same measurement runs on the robot. `measure` is the loop; the worker of another `Runner` calls `run` with
what loads it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune_runtime import terminal
from edgetune_runtime.answer import Runner
from edgetune_runtime.bench.options import Options
from edgetune_runtime.bench.power.meter import Meter
from edgetune_runtime.bench.predictions import Box, GroundPrediction, Prediction, VqaPrediction
from edgetune_runtime.bench.results import Report
from edgetune_runtime.errors import EdgetuneError, InputError
from edgetune_runtime.files import write_whole
from edgetune_runtime.gpu import Gpu
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.load import upright_size
from edgetune_runtime.records import Record, Shard, read_records
from edgetune_runtime.session import Session
from edgetune_runtime.timing import CpuShare, GpuMemory, peak_rss, process_age
from edgetune_runtime.typed_json import encode

Load = Callable[[], tuple[Runner, Preprocessing]]
"""Makes a model ready and says how it takes pictures; what it takes is the load time."""


def measure(
    load: Load,
    records: Sequence[Record],
    *,
    warmup: int,
    max_new_tokens: int,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Load a model, answer every record once, and return rows and costs by the names of the fields of `Report`.

    The first record is answered once right after loading, which gives the cold start (process start to first
    answer), then `warmup` times unmeasured. The measured pass follows, in the order of the records. Its energy includes
    the GPU's unless `device` is the CPU. `progress` prints the number of answers so far on standard output, one a line.
    """
    cpu, gpu = CpuShare(), GpuMemory()
    load_before = os.getloadavg()
    started = time.perf_counter()
    runner, preprocessing = load()
    load_s = time.perf_counter() - started
    predict(runner, records[0], max_new_tokens)
    cold_start_s = process_age()
    for _ in range(warmup):
        predict(runner, records[0], max_new_tokens)
    rows = []
    with Meter(gpu=None if device == "cpu" else Gpu()) as meter:
        for done, record in enumerate(records, 1):
            rows.append(predict(runner, record, max_new_tokens))
            meter.tick()
            gpu.sample()
            if progress:
                print(done, flush=True)
    return {
        "load_s": load_s,
        "cold_start_s": cold_start_s,
        "peak_rss_bytes": peak_rss(),
        "peak_gpu_bytes": gpu.peak,
        "warmup": warmup,
        "load_average": (load_before[0], os.getloadavg()[0]),
        "others_cpu_share": cpu.others(),
        "power": meter.power(len(rows)),
        "rows": tuple(
            replace(row, image_tokens=preprocessing.plan(*upright_size(record.image)).image_tokens)
            for row, record in zip(rows, records, strict=True)
        ),
    }


def predict(runner: Runner, record: Record, max_new_tokens: int) -> Prediction:
    """Answer one record: with boxes where it asks for a place, else in words without control tokens."""
    common: dict[str, Any] = {
        "id": record.id,
        "source": record.source,
        "image": str(record.image.absolute()),  # results may be read from another folder
        "text": record.text,
    }
    if record.boxes is None:
        stream = runner.stream(record.image, record.request or record.text, max_new_tokens=max_new_tokens)
        raw = "".join(stream).strip()
        assert stream.timings is not None  # it was read to its end
        return VqaPrediction(**common, raw=raw, timings=stream.timings, expected=tuple(record.answers))
    words = record.request or runner.request(record.text)
    answer = runner.answer(record.image, words, max_new_tokens=max_new_tokens)
    return GroundPrediction(
        **common,
        raw=answer.text,
        timings=answer.timings,
        truth=tuple(map(_box, record.boxes)),
        boxes=tuple(_box(found.box) for found in answer.detections),
        labels=tuple(found.label for found in answer.detections),
        scores=tuple(found.score for found in answer.detections),
        status=answer.status,
        complete=answer.complete,
        problem=answer.problem,
    )


def select(path: Path, *, limit: int | None, shard: str | None, turn: str) -> list[Record]:
    """The first `limit` records of `path`; of these the shard; of these, in round "I/N", every N-th from the I-th on.

    Raises:
        RecordError: a record is broken.
        InputError: nothing is left, or the shard or the round is malformed.
    """
    index, _, count = turn.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"--round {turn}: must be I/N with 1 <= I <= N")
    records = read_records(path)[:limit]
    if shard is not None:
        records = Shard.parse(shard).take(records, by=lambda record: record.image)
    records = records[int(index) - 1 :: int(count)]
    if not records:
        raise InputError(f"{path}: no records to answer (limit {limit}, shard {shard}, round {turn})")
    return records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every worker takes."""
    parser.add_argument("--data", type=Path, required=True, help="JSONL of records to answer")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--limit", type=int, help="answer only the first N records")
    parser.add_argument("--shard", metavar="I/N", help="of these, answer the records of every N-th picture")
    parser.add_argument("--round", default="1/1", metavar="I/N", help="of these, answer every N-th from the I-th on")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's own choice)")
    parser.add_argument(
        "--warmup", type=int, default=Options.warmup, help="unmeasured answers before the measured pass"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer, in tokens")
    parser.add_argument("--max-pixels", type=int, help="largest area of the resized picture (default: its own)")
    parser.add_argument("--progress", action="store_true", help="print the number of answers so far")


def run(load: Load, options: argparse.Namespace, *, folders: Sequence[Path], header: dict[str, Any]) -> int:
    """Measure a model as the worker's arguments say, write the JSON, and return the process's exit code.

    Args:
        load: makes the model ready; may add to `header`.
        options: what `add_arguments` parsed.
        folders: everything that the model was loaded from, for its size.
        header: further fields of `Report`.
    """
    try:
        records = select(options.data, limit=options.limit, shard=options.shard, turn=options.round)
        measured = measure(
            load,
            records,
            warmup=options.warmup,
            max_new_tokens=options.max_new_tokens,
            device=options.device,
            progress=options.progress,
        )
        size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        _write(options.output, Report(size_bytes=size, **header, **measured))
    except EdgetuneError as error:
        terminal.report(str(error), error.hint)
        return error.exit_code
    except BrokenPipeError:
        return 1  # whoever started this process and reads its progress is gone
    return 0


def _write(path: Path, report: Report) -> None:
    """Write the report; a killed worker leaves no half file."""
    values = encode(report) | {"rows": [row.to_dict() for row in report.rows]}
    write_whole(path, json.dumps(values, ensure_ascii=False) + "\n")


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgetune_runtime.bench.worker", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder written by edgetune export")
    parser.add_argument("--engine", help="an installed engine in place of the runtime's own for the format")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    header: dict[str, Any] = {"device": options.device, "threads": options.threads}

    def load() -> tuple[Runner, Preprocessing]:
        # Every record must pay for its image, or a set with several phrases per picture would look faster than it is.
        session = Session.load(
            options.bundle,
            device=options.device,
            threads=options.threads,
            engine=options.engine,
            cached_images=0,
            max_pixels=options.max_pixels,
        )
        bundle = session.bundle
        header.update(format=bundle.format, engine=options.engine or bundle.format, precision=bundle.precision)
        header.update(self_check=bundle.self_check)
        return session, bundle.spec

    return run(load, options, folders=[options.bundle], header=header)


if __name__ == "__main__":
    sys.exit(main())
