"""`edgetune-run bench`: measure bundles on a device that has only the runtime, into one file to carry home."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgetune_runtime.bench.options import Options
from edgetune_runtime.bench.results import Failed, Measured, Row
from edgetune_runtime.errors import GateFailed, InputError
from edgetune_runtime.files import write_whole
from edgetune_runtime.pixels import parse_area
from edgetune_runtime.terminal import count, say


def build_parser() -> argparse.ArgumentParser:
    """The command line of `edgetune-run bench`."""
    parser = argparse.ArgumentParser(
        prog="edgetune-run bench",
        description="Measure bundles on the same records: accuracy, speed by stage, memory and size. "
        "`edgetune bench merge`, `edgetune gate` and the report read the file that it writes.",
    )
    add = parser.add_argument
    add("bundles", nargs="+", metavar="[NAME=]BUNDLE", help="folder of a bundle, and the name of its row")
    add("--data", type=Path, required=True, metavar="FILE", help="JSONL file of records with their answers")
    add("--output", type=Path, required=True, metavar="FILE", help="JSON file to write figures and answers to")
    add("--baseline", metavar="[NAME=]BUNDLE", help="the bundle that the others are compared with (default: none)")
    add("--limit", type=count, metavar="N", help="use only the first N records")
    shard = "use only the records of every N-th picture from the I-th on; `edgetune bench merge` joins the files"
    add("--shard", metavar="I/N", help=shard)
    rounds = "split the records into N parts, bundles taking turns after each (default: 1)"
    add("--rounds", type=count, default=1, metavar="N", help=rounds)
    warmup = "unmeasured answers before the measured ones (default: %(default)s)"
    add("--warmup", type=int, default=Options.warmup, metavar="N", help=warmup)
    add("--device", default="cpu", help="device that the bundles run on, cpu or cuda (default: cpu)")
    add("--engine", metavar="NAME", help="an installed engine to use in place of the runtime's own")
    threads = "CPU threads (default: all usable cores; with --device cuda the engine's own choice)"
    add("--threads", type=count, metavar="N", help=threads)
    add("--max-new-tokens", type=count, default=128, metavar="N", help="longest answer, in tokens (default: 128)")
    areas = (
        "largest areas of the resized pictures, such as 200k,400k; bundles are measured at each (default: their own)"
    )
    add("--max-pixels", metavar="N,...", help=areas)
    stall = "stop a bundle that has not answered for this many seconds (default: 600)"
    add("--stall", type=float, default=600.0, metavar="SECONDS", help=stall)
    add("--force", action="store_true", help="replace an earlier output file")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure and write the file.

    Raises:
        InputError: bad input, or FILE cannot be written or exists.
        GateFailed: after the file was written, when a row failed.
    """
    from edgetune_runtime.bench.matrix import report_lines
    from edgetune_runtime.bench.plan import prepare
    from edgetune_runtime.bench.targets import identify_bundle, parse
    from edgetune_runtime.records import Shard

    output: Path = options.output
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output.parent}: no such folder")
    if output.is_dir():
        raise InputError(f"{output}: is a folder", hint="--output names the JSON file to write")
    if output.exists() and not options.force:
        raise InputError(f"{output}: exists", hint="choose another name, or --force")
    identify = partial(identify_bundle, engine=options.engine)
    bounds = [] if options.max_pixels is None else options.max_pixels.split(",")
    plan = prepare(
        [parse(text, identify) for text in options.bundles],
        options.data,
        options=Options.of(
            options,
            max_pixels=tuple(dict.fromkeys(map(parse_area, bounds))) or None,
            shard=None if options.shard is None else Shard.parse(options.shard),
        ),
        baseline=parse(options.baseline, identify) if options.baseline else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        note = partial(say, error=True)
        results, answers = plan.run(Path(folder), note=note, watch=report_lines(note))
    rows = [replace(row, answers=answers[row.name]) if isinstance(row, Measured) else row for row in results.rows]
    results = replace(results, rows=tuple(rows))
    write_whole(output, json.dumps(results.to_dict(), ensure_ascii=False) + "\n")
    say("\n".join(describe(row) for row in results.rows))
    if results.shard_remark:
        note(results.shard_remark)
    if failed := [row.name for row in results.failed]:
        raise GateFailed(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")


def describe(row: Row) -> str:
    """One line about a row, for a person."""
    if isinstance(row, Failed):
        return f"{row.name}: failed (exit code {row.exit_code}): {row.reason}"
    shares = {
        "Acc@0.5": row.ground.acc50 if row.ground else None,
        "mIoU": row.ground.miou if row.ground else None,
        "VQA": row.vqa.accuracy if row.vqa else None,
    }
    parts = [f"{title} {100 * value:.1f} %" for title, value in shares.items() if value is not None]
    parts.append(f"{1000 * row.stages.total.p50:.1f} ms (p95 {1000 * row.stages.total.p95:.1f})")
    parts.append(f"{row.peak_rss_bytes / 1e6:.0f} MB of memory, {row.size_bytes / 1e6:.1f} MB of files")
    joules = row.power and row.power.joules
    parts.append("energy not told" if joules is None else f"{joules:.3g} J an answer")
    return f"{row.name}: {', '.join(parts)}"
