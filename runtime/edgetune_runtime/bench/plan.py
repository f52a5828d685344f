"""A measurement from its checked input to its results, whoever asks for it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgetune_runtime.bench import machine, matrix
from edgetune_runtime.bench.launch import Failure
from edgetune_runtime.bench.matrix import Note, Watch, unwatched
from edgetune_runtime.bench.options import Options
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.bench.results import Data, Failed, Input, Measured, Report, Results, Row
from edgetune_runtime.bench.scores import STATISTICS, compare, costs, summarise
from edgetune_runtime.bench.shards import Numbered, numbered
from edgetune_runtime.bench.targets import Target, at_bounds, with_baseline
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import MANIFEST, read_manifest, sha256_tree
from edgetune_runtime.threads import measured_threads

Answers = Mapping[str, tuple[Prediction, ...]]
"""Predictions of each target that ran, by its name, in the order of the records."""


@dataclass(frozen=True)
class Plan:
    """Targets, records and options whose input has been checked; `prepare` makes one.

    Attributes:
        targets: the rows, with names of their own.
        data: the JSONL file that workers read.
        records: what every row answers, with the records' numbers in the whole set.
        facts: what the results say of them.
        options: how targets are run.
        baseline: name of the row that the others are compared with.
        inputs: what the results depend on, by role; damaged folders are left out.
        damaged: what is wrong with those, by name.
        remarks: on rows that learned from the very records that they are measured on.
    """

    targets: Sequence[Target]
    data: Path
    records: Sequence[Numbered]
    facts: Data
    options: Options
    baseline: str | None
    inputs: Mapping[str, Path]
    damaged: Mapping[str, str]
    remarks: Sequence[str] = ()

    def run(self, folder: Path, *, note: Note, watch: Watch = unwatched) -> tuple[Results, Answers]:
        """Run all targets, with `folder` for workers' files and logs; returns the results and the answers.

        The results hold no single answer; `docs/bench.md` describes them.
        """
        busy = machine.busy_remark()
        for remark in [*([busy] if busy else []), *self.remarks]:
            note(remark)
        records = [record for _, record in self.records]
        outcomes = matrix.run_matrix(self.targets, self.data, records, folder, self.options, note=note, watch=watch)
        answers = {name: run.rows for name, run in outcomes.items() if isinstance(run, Report)}
        if self.options.shard is not None:
            answers = {name: numbered(said, self.records) for name, said in answers.items()}
        hashes = {path: sha256_tree(path) for path in dict.fromkeys(self.inputs.values())}
        results = Results(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=shlex.join(sys.argv),
            machine=machine.describe(),
            versions=machine.versions(),
            options=self.options,
            statistics=STATISTICS,
            data=self.facts,
            inputs={name: Input(str(path), hashes[path]) for name, path in self.inputs.items()},
            baseline=self.baseline,
            rows=tuple(self._row(target, outcomes[target.name], answers) for target in self.targets),
        )
        return results, answers

    def _row(self, target: Target, outcome: Report | Failure, answers: Answers) -> Row:
        is_baseline = target.name == self.baseline
        common: dict[str, Any] = {
            "name": target.name,
            "path": str(target.path),
            "kind": target.kind,
            "title": target.title,
            "baseline": is_baseline,
            "max_pixels": target.max_pixels,
        }
        if isinstance(outcome, Failure):
            return Failed(**common, reason=outcome.reason, exit_code=outcome.exit_code)
        reference = answers.get(self.baseline) if self.baseline and not is_baseline else None
        return Measured(
            **common,
            **costs(outcome),
            **summarise(outcome.rows),
            delta=compare(outcome.rows, reference) if reference else None,
        )


def prepare(
    targets: Sequence[Target],
    data: Path,
    *,
    options: Options,
    baseline: Target | None = None,
    made_from: Mapping[str, Path] | None = None,
    watch: Watch = unwatched,
) -> Plan:
    """Check all input before anything runs: records, images, folders, names.

    Every target is a row at each of the options' bounds of the pictures; the baseline is a row within its own limits,
    the first where it is not among the targets. On a CPU, rows have all usable cores unless the options say how many.
    Where `data` is a copy in canonical form, `made_from` has the files that it was made from, "data" and others by
    role: it is them that the results name.

    Raises:
        InputError: nothing to answer, more rounds than records or shards than pictures, a folder named twice, or too
            many threads.
        RecordError, ImageError: a record or its image is broken.
    """
    options = replace(options, threads=measured_threads(options.device, options.threads))
    named, reference = with_baseline(at_bounds(targets, options.max_pixels or ()), baseline)
    records, facts = matrix.check_records(data, options, watch)
    if options.rounds > len(records):
        raise InputError(f"--rounds {options.rounds}: there are only {len(records)} records to deal out")
    intact, damaged = matrix.input_hashes(named)
    files = dict(made_from or {"data": data})
    inputs = files | {f"row {name}": path for name, path in intact.items()}
    measured = {sha256_tree(path) for path in files.values()}
    remarks = [
        f"{name}: {how} these very records, so its accuracy on them says nothing about new ones"
        for name, path in intact.items()
        for how, hashes in _learned_from(path).items()
        if measured & hashes
    ]
    facts = replace(facts, path=str(files["data"]))
    return Plan(named, data, records, facts, options, reference, inputs, damaged, remarks)


def _learned_from(folder: Path) -> dict[str, set[str]]:
    """Return the sha256 of the data files that a bundle or a checkpoint says it was made with."""
    if not (folder / MANIFEST).is_file():
        return {}
    result = _object(read_manifest(folder), "result")
    bundle = _object(result, "bundle")
    told = {
        "trained on": {**_object(result, "trained_on"), **_object(_object(bundle, "provenance"), "trained_on")},
        "calibrated on": _object(_object(bundle, "calibration"), "data"),
    }
    return {how: {value for value in hashes.values() if isinstance(value, str)} for how, hashes in told.items()}


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}
