"""Join results of the same records from several machines, all compared with one baseline."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from edgetune_bench.folder import RESULTS, measured_pictures, read_answers, read_results
from edgetune_bench.study import add_metrics
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.bench.results import Input, Measured, Results, Row
from edgetune_runtime.bench.scores import STATISTICS, check_same_records, compare, summarise
from edgetune_runtime.errors import InputError


@dataclass(frozen=True)
class MachineResults:
    """What one machine brought: its label, its results and the answers of its rows by their names there."""

    label: str
    path: Path
    results: Results
    answers: Answers

    def identity(self, row: str) -> tuple[str, ...]:
        """The sha256 of the folders that a row was made from, () where they are not known."""
        inputs = self.results.inputs
        return tuple(inputs[key].sha256 for key in (f"row {row}", f"row {row} adapter") if key in inputs)


def label(arguments: Sequence[str]) -> dict[str, Path]:
    """Read `[MACHINE=]RESULTS` arguments; a machine is called like its file, or like the folder of a results.json.

    Raises:
        InputError: two machines would have one name.
    """
    found: dict[str, Path] = {}
    for text in arguments:
        name, equals, rest = text.partition("=")
        chosen = bool(equals and name) and not Path(text).exists()
        path = Path(rest if chosen else text)
        place = path.resolve()
        own = place.parent.name if place.name == RESULTS else place.name.removesuffix(".json")
        machine = name if chosen else own
        if machine in found:
            raise InputError(f"two machines would be called {machine!r}", hint="name them: MACHINE=RESULTS")
        found[machine] = path
    return found


def merge(sources: Mapping[str, Path]) -> tuple[Results, dict[str, tuple[Prediction, ...]], list[str]]:
    """Return the joined results, the answers, and the picture of each record (see `folder.measured_pictures`).

    Rows keep their names, with `@MACHINE` behind those that occur twice. Accuracies, times and differences are computed
    again from the answers; only what a process cost is taken from the files.

    Args:
        sources: results by machine, from `label`.

    Raises:
        InputError: a file cannot be read or is joined already, or the machines answered other records, other
            pictures, with another limit of tokens, or were compared with another baseline.
    """
    parts = [_load(name, path) for name, path in sources.items()]
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
            inputs |= _inputs(part, old.name, name)
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
    pictures = next((found for part in parts if (found := measured_pictures(part.results, part.answers))), [])
    return add_metrics(results, answers, _metrics(parts)), answers, pictures


def _load(name: str, path: Path) -> MachineResults:
    results = read_results(path)
    if results.machines is not None:
        raise InputError(f"{path}: is joined from several machines already", hint="name the results it came from")
    return MachineResults(name, path, results, read_answers(path, results))


def _inputs(part: MachineResults, old: str, name: str) -> dict[str, Input]:
    """What a row was made from, under its new name."""
    inputs = part.results.inputs
    return {
        f"row {name}{more}": inputs[f"row {old}{more}"] for more in ("", " adapter") if f"row {old}{more}" in inputs
    }


def _metrics(parts: Sequence[MachineResults]) -> list[str]:
    """Further metrics that some row has."""
    rows = [row for part in parts for row in part.results.ran]
    present = {
        "ap": any(row.ground and row.ground.coco for row in rows),
        "bleu": any(row.vqa and row.vqa.bleu is not None for row in rows),
        "cider": any(row.vqa and row.vqa.cider is not None for row in rows),
    }
    return [metric for metric, there in present.items() if there]


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
                f"{first.path} and {other.path} cannot be joined, the {what} differs: {_short(ours)}, {_short(theirs)}",
                hint="measure on every machine with the same --data, --limit and --max-new-tokens",
            )


def _baseline(parts: Sequence[MachineResults]) -> tuple[MachineResults, str] | None:
    """The first baseline that ran, and the part that has it; all others must be the same folder's.

    A machine without one is compared with another machine's.
    """
    own = [(part, name) for part in parts if (name := part.results.baseline) and name in part.answers]
    for part, name in own[1:]:
        first, reference = own[0]
        if part.identity(name) != first.identity(reference):
            raise InputError(
                f"{first.path} compares with {reference!r}, {part.path} with {name!r}, which is another model",
                hint="measure with one --baseline on all machines, or with none on all but one",
            )
    return own[0] if own else None


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
