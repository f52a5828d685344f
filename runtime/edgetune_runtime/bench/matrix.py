"""Run every target over the same records, one process each, and keep what each said and cost, or why it failed."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from edgetune_runtime.bench.launch import Failure, run_worker
from edgetune_runtime.bench.options import Options
from edgetune_runtime.bench.power.meter import pooled
from edgetune_runtime.bench.results import Data, Report, Whole
from edgetune_runtime.bench.shards import Numbered, records_sha256
from edgetune_runtime.bench.targets import Target
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.images.load import load_image
from edgetune_runtime.manifest import MANIFEST, sha256_file, sha256_tree, verify_files
from edgetune_runtime.records import Record, read_records
from edgetune_runtime.typed_json import decode

Note = Callable[[str], None]
Watch = Callable[[str, int, str], AbstractContextManager[Callable[[int], object]]]
"""Shows the progress of a long step: called with its title, the number of units and their name; what it yields is told
how many are done."""


@contextmanager
def unwatched(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """A `Watch` that shows nothing."""
    yield lambda done: None


def report_lines(note: Note, every_s: float = 10.0) -> Watch:
    """A `Watch` for where there is no terminal: a line about how far a step is, at most one in `every_s` seconds."""

    @contextmanager
    def watch(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        said = time.monotonic()

        def progress(done: int) -> None:
            nonlocal said
            if time.monotonic() - said >= every_s:
                said = time.monotonic()
                note(f"{title}: {done} of {total} {unit}s done")

        yield progress

    return watch


def check_records(data: Path, options: Options, watch: Watch = unwatched) -> tuple[list[Numbered], Data]:
    """Read the records and open every image, so that bad input stops the run before the first worker starts.

    Of a shard, its own images are opened, and those of the whole set are read for their sha256.

    Returns the records with their numbers in the whole set, and what the results say of them.

    Raises:
        RecordError: a record is broken. ImageError: an image is. InputError: there are no records, or fewer pictures
            than shards.
    """
    every = list(enumerate(read_records(data)[: options.limit], 1))
    if not every:
        raise InputError(f"{data}: no records", hint="give a JSONL with at least one record")
    shard = options.shard
    chosen = every if shard is None else shard.take(every, by=lambda numbered: numbered[1].image)
    images = _images(chosen)
    with watch("check images", len(images), "image") as progress:
        for done, image in enumerate(images, 1):
            load_image(image)
            progress(done)
    found = Data(str(data), len(chosen), images_sha256(images))
    if shard is not None:
        whole = Whole(len(every), images_sha256(_images(every)))
        found = replace(found, records_sha256=records_sha256(chosen), whole=whole)
    return chosen, found


def images_sha256(images: Iterable[Path]) -> str:
    """One sha256 over pictures' files, each once, in the order in which they are first named."""
    digest = hashlib.sha256()
    for image in dict.fromkeys(images):
        digest.update(sha256_file(image).encode())
    return digest.hexdigest()


def _images(records: Sequence[Numbered]) -> list[Path]:
    return list(dict.fromkeys(record.image for _, record in records))


def input_hashes(targets: Sequence[Target]) -> tuple[dict[str, Path], dict[str, str]]:
    """Split the targets' folders into intact ones (by name) and what is wrong with the damaged ones.

    A damaged bundle is still run: its row then says why it failed.
    """
    folders = [item for target in targets for item in target.inputs().items()]
    told = {folder: _damage(folder) for folder in dict.fromkeys(folder for _, folder in folders)}
    problems = {name: told[folder] for name, folder in folders}
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
    """One report of several rounds: rows in record order, median load and start, largest memory, mean energy."""
    first, last = reports[0], reports[-1]
    shares = [report.others_cpu_share for report in reports if report.others_cpu_share is not None]
    powers = [report.power for report in reports if report.power is not None]
    gpu = [report.peak_gpu_bytes for report in reports if report.peak_gpu_bytes is not None]
    averages = (first.load_average, last.load_average)
    return replace(
        first,
        load_s=statistics.median(report.load_s for report in reports),
        cold_start_s=statistics.median(report.cold_start_s for report in reports),
        peak_rss_bytes=max(report.peak_rss_bytes for report in reports),
        peak_gpu_bytes=max(gpu, default=None),
        load_average=(averages[0][0], averages[1][1]) if averages[0] and averages[1] else None,
        others_cpu_share=max(shares, default=None),
        power=pooled(powers) if len(powers) == len(reports) else None,
        rows=tuple(sorted((row for report in reports for row in report.rows), key=lambda row: order[row.source])),
    )


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
    if isinstance(outcome, Failure):
        return outcome
    try:
        return decode(Report, outcome)
    except InputError as error:
        return Failure(f"ended without a readable result: {error}", 0)
