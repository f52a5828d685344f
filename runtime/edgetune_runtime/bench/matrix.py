"""Run every target over the same records, one process each, and keep what each said and cost, or why it failed."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetune_runtime.bench.launch import Failure, run_worker
from edgetune_runtime.bench.targets import Target
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.images.load import load_image
from edgetune_runtime.manifest import MANIFEST, sha256_file, sha256_tree, verify_files
from edgetune_runtime.records import Record, read_records

Report = dict[str, Any]
Note = Callable[[str], None]
Watch = Callable[[str, int, str], AbstractContextManager[Callable[[int], object]]]
"""Shows the progress of a long step: called with its title, the number of units and their name; what it yields is told
how many are done."""


@contextmanager
def unwatched(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """A `Watch` that shows nothing."""
    yield lambda done: None


@dataclass(frozen=True)
class Options:
    """How targets are run; the same for all of them.

    `rounds` deals the records out into that many parts and runs part after part, each over all targets, so that a
    machine that slows down for a while slows all of them. `threads` None leaves the number of CPU threads to each
    engine. `stall_s` ends a worker that answers nothing for so long.
    """

    limit: int | None = None
    device: str = "cpu"
    threads: int | None = 1
    warmup: int = 1
    rounds: int = 1
    max_new_tokens: int = 128
    stall_s: float = 600.0

    def arguments(self, data: Path, part: int) -> list[str]:
        """The arguments of a worker that runs part `part` (from 0) of `data`."""
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        return [
            *("--data", str(data), "--device", self.device, "--warmup", str(self.warmup)),
            *("--max-new-tokens", str(self.max_new_tokens), "--shard", f"{part}/{self.rounds}", *limit),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


def check_records(data: Path, limit: int | None, watch: Watch = unwatched) -> tuple[list[Record], str]:
    """Read the records and open every image, so that bad input stops the run before the first worker starts.

    Returns the records and one sha256 over the images' files, in record order.

    Raises:
        RecordError: a record is broken. ImageError: an image is. InputError: there are no records.
    """
    records = read_records(data)[:limit]
    if not records:
        raise InputError(f"{data}: no records", hint="give a JSONL with at least one record")
    digest = hashlib.sha256()
    images = list(dict.fromkeys(record.image for record in records))
    with watch("check images", len(images), "image") as progress:
        for done, image in enumerate(images, 1):
            load_image(image)
            digest.update(sha256_file(image).encode())
            progress(done)
    return records, digest.hexdigest()


def input_hashes(targets: Sequence[Target]) -> tuple[dict[str, Path], dict[str, str]]:
    """Split the targets' folders into intact ones (by name) and what is wrong with the damaged ones.

    A damaged bundle is still run: its row then says why it failed.
    """
    folders = [item for target in targets for item in target.inputs().items()]
    problems = {name: _damage(folder) for name, folder in folders}
    intact = {name: folder for name, folder in folders if problems[name] is None}
    return intact, {name: problem for name, problem in problems.items() if problem is not None}


def run_matrix(
    targets: Sequence[Target],
    data: Path,
    records: Sequence[Record],
    folder: Path,
    options: Options,
    *,
    note: Note,
    watch: Watch = unwatched,
) -> dict[str, Report | Failure]:
    """Run all targets and return a report, or the failure, for each target's name, in the targets' order.

    Workers write into `folder`: `logs/` keeps their standard error. The order of a report's rows is that of `records`.
    """
    (folder / "logs").mkdir()
    parts: dict[str, list[Report]] = {target.name: [] for target in targets}
    failed: dict[str, Failure] = {}
    for part in range(options.rounds):
        count = len(records[part :: options.rounds])
        for target in targets:
            if target.name in failed:
                continue
            turn = f" (round {part + 1} of {options.rounds})" if options.rounds > 1 else ""
            note(f"{target.name}: {count} records{turn}")
            outcome = _run_one(target, data, part, count, folder, options, watch)
            if isinstance(outcome, Failure):
                note(f"{target.name}: failed: {outcome.reason}")
                failed[target.name] = outcome
            else:
                parts[target.name].append(outcome)
    order = {record.source: place for place, record in enumerate(records)}
    return {name: failed[name] if name in failed else combine(reports, order) for name, reports in parts.items()}


def combine(reports: Sequence[Report], order: Mapping[str, int]) -> Report:
    """One report of several rounds: rows in record order, median load time and cold start, largest memory."""
    first = reports[0]
    rows = sorted((row for report in reports for row in report["rows"]), key=lambda row: order[row["source"]])
    shares = [report["others_cpu_share"] for report in reports if report["others_cpu_share"] is not None]
    gpu = [report["peak_gpu_bytes"] for report in reports if report["peak_gpu_bytes"] is not None]
    return first | {
        "load_s": statistics.median(report["load_s"] for report in reports),
        "cold_start_s": statistics.median(report["cold_start_s"] for report in reports),
        "peak_rss_bytes": max(report["peak_rss_bytes"] for report in reports),
        "peak_gpu_bytes": max(gpu, default=None),
        "load_average": [first["load_average"][0], reports[-1]["load_average"][1]],
        "others_cpu_share": max(shares, default=None),
        "rows": rows,
    }


def slug(name: str) -> str:
    """A target's name as a file name."""
    return name.replace("/", "__")


def _damage(folder: Path) -> str | None:
    """What is wrong with a folder, or None."""
    try:
        if (folder / MANIFEST).is_file():
            verify_files(folder)
        sha256_tree(folder)
    except BundleError as error:
        return str(error)
    return None


def _run_one(
    target: Target, data: Path, part: int, count: int, folder: Path, options: Options, watch: Watch
) -> Report | Failure:
    name = slug(target.name)
    output = folder / f"{name}.json"
    with watch(target.name, count, "record") as progress:
        outcome = run_worker(
            [*target.command(), *options.arguments(data, part)],
            output=output,
            log=folder / "logs" / f"{name}.{part}.txt",
            threads=options.threads,
            stall_s=options.stall_s,
            progress=progress,
        )
    output.unlink(missing_ok=True)
    return outcome
