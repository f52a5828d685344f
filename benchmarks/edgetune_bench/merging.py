"""Join results of the same records: shards into a whole, several machines into one comparison with one baseline."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from edgetune_bench import shards
from edgetune_bench.folder import measured_pictures, read_answers
from edgetune_bench.sources import UNNAMED, Source, brief, by_machine, read_sources, row_identity, row_inputs
from edgetune_bench.study import METRICS, add_metrics
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.bench.results import Measured, Results, Row
from edgetune_runtime.bench.scores import STATISTICS, check_same_records, compare, summarise
from edgetune_runtime.errors import InputError


@dataclass(frozen=True)
class MachineResults:
    """What one machine brought: its label, its results and the answers of its rows by their names there."""

    label: str
    path: Path
    results: Results
    answers: Answers


def gather(arguments: Sequence[str]) -> dict[str, list[Source]]:
    """Return the results that `[MACHINE=]RESULTS` arguments name, by machine: one file, or all shards in their order.

    Raises:
        InputError: as `sources.read_sources`, `sources.by_machine` and `shards.in_order`.
    """
    machines = by_machine(read_sources(arguments))
    return {name: shards.in_order(group) if group[0].results.shard else group for name, group in machines.items()}


def merge(sources: Mapping[str, Sequence[Source]]) -> tuple[Results, dict[str, tuple[Prediction, ...]], list[str]]:
    """Return the joined results, the answers, and the picture of each record (see `folder.measured_pictures`).

    Shards whose machine has no name come to the results of one run over the whole set. Otherwise rows say their
    machine; they keep their names, with `@MACHINE` behind those that occur twice. Accuracies, times and differences are
    computed again from the answers; only what a process cost is taken from the files.

    Args:
        sources: results by machine, from `gather`.

    Raises:
        InputError: answers cannot be read, or the machines answered other records, other pictures, with another limit
            of tokens, or were compared with another baseline.
    """
    parts = [_load(name, group) for name, group in sources.items()]
    metrics = _metrics(parts)
    pictures = next((found for part in parts if (found := measured_pictures(part.results, part.answers))), [])
    if UNNAMED in sources:
        (part,) = parts
        return add_metrics(part.results, part.answers, metrics), dict(part.answers), pictures
    for part in parts[1:]:
        _check_same(parts[0], part)
    _check_answers(parts)
    names = [row.name for part in parts for row in part.results.rows]
    baseline = _baseline(parts)
    reference = baseline and baseline[0].answers[baseline[1]]
    rows: list[Row] = []
    answers, inputs = {}, {"data": parts[0].results.inputs["data"]}
    for part in parts:
        for old in part.results.rows:
            name = old.name if names.count(old.name) == 1 else f"{old.name}@{part.label}"
            is_baseline = baseline is not None and baseline[0] is part and old.name == baseline[1]
            row = replace(old, name=name, machine=part.label, baseline=is_baseline)
            if isinstance(row, Measured):
                answers[name] = said = part.answers[old.name]
                delta = compare(said, reference) if reference and not is_baseline else None
                row = replace(row, answers=None, delta=delta, **summarise(said))
            rows.append(row)
            inputs |= row_inputs(part.results.inputs, old.name, name)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
        machines={part.label: part.results.origins[""] for part in parts},
        statistics=STATISTICS,
        data=parts[0].results.data,
        inputs=inputs,
        baseline=next((row.name for row in rows if row.baseline), None),
        rows=tuple(rows),
    )
    return add_metrics(results, answers, metrics), answers, pictures


def _load(name: str, group: Sequence[Source]) -> MachineResults:
    first = group[0]
    if first.results.shard is None:
        return MachineResults(name, first.path, first.results, read_answers(first.path, first.results))
    return MachineResults(name, first.path, *shards.join(group))


def _metrics(parts: Sequence[MachineResults]) -> list[str]:
    """Further metrics that were asked for, or that some row has where the file does not say what was."""
    rows = [row for part in parts for row in part.results.ran]
    asked = {metric for part in parts for metric in part.results.metrics or ()}
    present = {
        "ap": any(row.ground and row.ground.coco for row in rows),
        "bleu": any(row.vqa and row.vqa.bleu is not None for row in rows),
        "cider": any(row.vqa and row.vqa.cider is not None for row in rows),
    }
    return [metric for metric in METRICS if present[metric] or metric in asked]


def _check_answers(parts: Sequence[MachineResults]) -> None:
    """Refuse answers that are not to the same records in the same order."""
    every = [(part, name, said) for part in parts for name, said in part.answers.items()]
    for part, name, said in every[1:]:
        try:
            check_same_records(said, every[0][2])
        except InputError as error:
            first = f"{every[0][1]} of {every[0][0].path}"
            raise InputError(
                f"{part.path}: {name}: {error}, as {first} has it",
                hint="copy the file again as it was written: answers stand in the order of the records",
            ) from error


def _check_same(first: MachineResults, other: MachineResults) -> None:
    """Refuse to compare what cannot be compared."""
    facts: dict[str, Callable[[MachineResults], object]] = {
        "records (sha256 of the data file)": lambda part: part.results.inputs["data"].sha256,
        "pictures (their sha256)": lambda part: part.results.data.images_sha256,
        "number of records": lambda part: part.results.data.records,
        "longest answer, in tokens": lambda part: part.results.origins[""].options.max_new_tokens,
    }
    for what, fact in facts.items():
        ours, theirs = fact(first), fact(other)
        if ours != theirs:
            raise InputError(
                f"{first.path} and {other.path} cannot be joined, the {what} differs: {brief(ours)}, {brief(theirs)}",
                hint="measure on every machine with the same --data, --limit and --max-new-tokens",
            )


def _baseline(parts: Sequence[MachineResults]) -> tuple[MachineResults, str] | None:
    """The first baseline that ran, and the part that has it; all others must be the same folder's.

    A machine without one is compared with another machine's.
    """
    own = [(part, name) for part in parts if (name := part.results.baseline) and name in part.answers]
    for part, name in own[1:]:
        first, reference = own[0]
        if row_identity(part.results, name) != row_identity(first.results, reference):
            raise InputError(
                f"{first.path} compares with {reference!r}, {part.path} with {name!r}, which is another model",
                hint="measure with one --baseline on all machines, or with none on all but one",
            )
    return own[0] if own else None
