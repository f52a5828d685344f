"""Join the shards of one measurement into what one run over the whole set would have written.

Answers stand in the order of the set again; accuracies, times and differences are computed from all of them. Of what a
process costs, load time and cold start are medians over the shards, and memory is the largest.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from edgetune_bench.folder import read_answers
from edgetune_bench.sources import Source, brief, row_identity
from edgetune_runtime.bench.machine import Machine
from edgetune_runtime.bench.matrix import combine
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.bench.results import Data, Failed, Job, Measured, Report, Results, Row
from edgetune_runtime.bench.scores import STATISTICS, compare, costs, summarise
from edgetune_runtime.bench.shards import answered_sha256, joined
from edgetune_runtime.errors import InputError
from edgetune_runtime.records import Shard
from edgetune_runtime.typed_json import encode

Answers = dict[str, tuple[Prediction, ...]]
_SETUP = ("kind", "engine", "format", "precision", "device", "threads", "self_check")


def in_order(sources: Sequence[Source]) -> list[Source]:
    """Return the shards of one run by their numbers, all of them.

    Raises:
        InputError: one is missing or there twice, or they differ in data, options, versions, seed or rows; the message
            names the first difference.
    """
    first, *others = sources
    for other in others:
        _check_same(first, other)
    ordered = sorted(sources, key=_index)
    for one, other in pairwise(ordered):
        if one.results.shard == other.results.shard:
            raise InputError(
                f"{one.path} and {other.path} are both shard {one.results.shard}",
                hint="name each shard once; where they are of two machines, name these: MACHINE=RESULTS",
            )
    count = _shard(first).count
    there = {_index(source) for source in sources}
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in there]
    if missing:
        listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        words = f"shard {listed} is" if len(missing) == 1 else f"shards {listed} are"
        raise InputError(
            f"{words} missing: {len(ordered)} of {count} are given", hint=f"run again with --shard {missing[0]}"
        )
    return ordered


def join(ordered: Sequence[Source]) -> tuple[Results, Answers]:
    """Return the results of the whole set and its answers.

    A row that failed in a shard has failed, with the shard's reason.

    Args:
        ordered: from `in_order`.

    Raises:
        InputError: answers cannot be read, or are not those to the records of their shard.
    """
    first = ordered[0].results
    whole = first.data.whole
    assert whole is not None and first.options is not None
    parts = [_answers(source) for source in ordered]
    failed = {row.name for source in ordered for row in source.results.failed}
    answers = {}
    for name in (row.name for row in first.rows if row.name not in failed):
        said = [part[name] for part in parts]
        if sorted(answer.number or 0 for part in said for answer in part) != list(range(1, whole.records + 1)):
            raise InputError(
                f"{ordered[0].path} and the other shards: {name}: no answer, or several, to some of the "
                f"{whole.records} records",
                hint="measure every shard again with one version of edgetune",
            )
        answers[name] = joined(said)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
        machine=common_machine([source.results.origins[""].machine for source in ordered]),
        versions=first.versions,
        options=replace(first.options, shard=None),
        statistics=STATISTICS,
        data=Data(first.data.path, whole.records, whole.images_sha256),
        inputs=first.inputs,
        baseline=first.baseline,
        rows=tuple(_row(row.name, ordered, answers, first.baseline) for row in first.rows),
        metrics=first.metrics,
        shards=tuple(_job(source.results) for source in ordered),
    )
    return results, answers


def common_machine(machines: Sequence[Machine]) -> Machine:
    """Return what machines have in common: of texts that differ all, of numbers that differ none.

    >>> common_machine([Machine("Xeon", cores=8, os="Linux"), Machine("EPYC", cores=16, os="Linux")])
    ... # doctest: +NORMALIZE_WHITESPACE
    Machine(cpu='Xeon / EPYC', gpu=None, arch=None, cores=None, usable_cores=None, memory_bytes=None, governor=None,
            board=None, os='Linux')
    """
    found: dict[str, Any] = {}
    for field in fields(Machine):
        values = list(dict.fromkeys(getattr(machine, field.name) for machine in machines))
        texts = [value for value in values if isinstance(value, str)]
        found[field.name] = values[0] if len(values) == 1 else " / ".join(texts) or None
    return Machine(**found)


def remarks(results: Results) -> list[str]:
    """A line for each machine whose times are pooled over several processors."""
    lines = []
    for name, origin in results.origins.items():
        processors = dict.fromkeys((job.machine.cpu, job.machine.gpu) for job in origin.shards or ())
        if len(processors) > 1:
            listed = "; ".join(" and ".join(part for part in parts if part) for parts in processors)
            lines.append(f"{name}{': ' if name else ''}times are pooled over shards on several processors: {listed}")
    return lines


def _shard(source: Source) -> Shard:
    shard = source.results.shard
    assert shard is not None
    return shard


def _index(source: Source) -> int:
    return _shard(source).index


def _job(results: Results) -> Job:
    return Job(results.created, results.command, results.origins[""].machine)


def _check_same(first: Source, other: Source) -> None:
    """Refuse what one run over the whole set could not have written."""
    ours, theirs = _facts(first.results), _facts(other.results)
    for what in ours | theirs:
        _check_fact(first, other, what, ours.get(what), theirs.get(what))
    rows, others = ({row.name: row for row in source.results.rows} for source in (first, other))
    for name in rows | others:
        if name not in rows or name not in others:
            lacks, has = (first, other) if name not in rows else (other, first)
            raise InputError(
                f"{lacks.path}: shard {lacks.results.shard} has no row {name!r}, which {has.path} has",
                hint="measure the same targets, by the same names, in every shard",
            )
        hashes = [row_identity(source.results, name) for source in (first, other)]
        if all(hashes):  # a damaged folder has none, and its row has failed
            for number, (one, two) in enumerate(zip(*hashes, strict=False)):
                what = f"sha256 of the {'adapter' if number else 'folder'} of row {name!r}"
                _check_fact(first, other, what, one, two)
            _check_fact(first, other, f"number of folders of row {name!r}", *map(len, hashes))
        one_row, two_row = rows[name], others[name]
        if isinstance(one_row, Measured) and isinstance(two_row, Measured):
            for key in _SETUP:
                _check_fact(first, other, f"{key} of row {name!r}", getattr(one_row, key), getattr(two_row, key))


def _facts(results: Results) -> dict[str, object]:
    whole, options = results.data.whole, results.options
    assert whole is not None and options is not None and options.shard is not None
    inputs = {name: found for name, found in results.inputs.items() if name != "data" and not name.startswith("row ")}
    return {
        "number of shards": options.shard.count,
        "sha256 of the data file": results.inputs["data"].sha256,
        **{f"sha256 of {name}": found.sha256 for name, found in inputs.items()},
        "number of records": whole.records,
        "sha256 of the pictures": whole.images_sha256,
        **{f"option {name}": value for name, value in replace(options, shard=None).to_dict().items()},
        **{f"version of {package}": version for package, version in (results.versions or {}).items()},
        **{f"{name} of the intervals": value for name, value in encode(results.statistics).items()},
        "baseline": results.baseline,
        "further metrics": ", ".join(results.metrics or ()) or None,
    }


def _check_fact(first: Source, other: Source, what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise InputError(
            f"{first.path} and {other.path} are no shards of one run, the {what} differs: "
            f"{brief(ours)}, {brief(theirs)}",
            hint="measure every shard alike but for --shard, with --threads where machines differ in cores",
        )


def _answers(source: Source) -> Mapping[str, tuple[Prediction, ...]]:
    found = read_answers(source.path, source.results)
    for name, said in found.items():
        if answered_sha256(said) != source.results.data.records_sha256:
            raise InputError(
                f"{source.path}: {name}: its answers are not those to the records of shard {source.results.shard}",
                hint="copy the whole folder again as it was written",
            )
    return found


def _row(name: str, ordered: Sequence[Source], answers: Answers, baseline: str | None) -> Row:
    rows = [(source, row) for source in ordered for row in source.results.rows if row.name == name]
    for source, row in rows:
        if isinstance(row, Failed):
            return replace(row, reason=f"shard {source.results.shard}: {row.reason}")
    ran = [row for _, row in rows if isinstance(row, Measured)]
    cost = costs(combine([Report(**costs(row), rows=()) for row in ran], {}))
    loads = [row.load_average for row in ran if row.load_average is not None]
    cost["load_average"] = (max(before for before, _ in loads), max(after for _, after in loads)) if loads else None
    said = answers[name]
    reference = answers.get(baseline) if baseline and name != baseline else None
    delta = compare(said, reference) if reference else None
    return replace(ran[0], answers=None, delta=delta, **cost, **summarise(said))
