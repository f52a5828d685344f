"""A measurement from its checked input to its results, whoever asks for it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgetune_runtime.bench import machine, matrix
from edgetune_runtime.bench.launch import Failure
from edgetune_runtime.bench.matrix import Note, Options, Watch, unwatched
from edgetune_runtime.bench.scores import STATISTICS, Row, compare, scored, summarise
from edgetune_runtime.bench.targets import Target, with_baseline
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import sha256_tree
from edgetune_runtime.records import Record

SCHEMA = 1
Answers = Mapping[str, Sequence[Row]]
"""Scored rows of each target that ran, by its name, in the order of the records."""


@dataclass(frozen=True)
class Plan:
    """Targets, records and options whose input has been checked; `prepare` makes one.

    Attributes:
        targets: the rows, with names of their own.
        data: the JSONL file that workers read.
        records: what every row answers.
        images_sha256: over the pictures' files, in record order.
        options: how targets are run.
        baseline: name of the row that the others are compared with.
        inputs: what the results depend on, by role; damaged folders are left out.
        damaged: what is wrong with those, by name.
    """

    targets: Sequence[Target]
    data: Path
    records: Sequence[Record]
    images_sha256: str
    options: Options
    baseline: str | None
    inputs: Mapping[str, Path]
    damaged: Mapping[str, str]

    def run(self, folder: Path, *, note: Note, watch: Watch = unwatched) -> tuple[dict[str, Any], Answers]:
        """Run all targets, with `folder` for workers' files and logs; returns the results as JSON values, and answers.

        The results hold no single answer; `docs/bench.md` describes them.
        """
        outcomes = matrix.run_matrix(
            self.targets, self.data, self.records, folder, self.options, note=note, watch=watch
        )
        answers = {name: scored(run["rows"]) for name, run in outcomes.items() if not isinstance(run, Failure)}
        results = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "options": self.options.to_dict(),
            "statistics": dict(STATISTICS),
            "data": {
                "path": str(self.inputs["data"]),
                "records": len(self.records),
                "images_sha256": self.images_sha256,
            },
            "inputs": {name: {"path": str(path), "sha256": sha256_tree(path)} for name, path in self.inputs.items()},
            "baseline": self.baseline,
            "rows": [self._row(target, outcomes[target.name], answers) for target in self.targets],
        }
        return results, answers

    def _row(self, target: Target, outcome: matrix.Report | Failure, answers: Answers) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": target.name,
            "path": str(target.path),
            "kind": target.kind,
            "title": target.title,
            "baseline": target.name == self.baseline,
        }
        if isinstance(outcome, Failure):
            return row | {"status": "failed", "reason": outcome.reason, "exit_code": outcome.exit_code}
        row |= {"status": "ok"} | summarise(outcome, answers[target.name])
        reference = answers.get(self.baseline) if self.baseline and not row["baseline"] else None
        return row | ({"delta": compare(answers[target.name], reference)} if reference else {})


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

    A baseline that is not among the targets becomes the first row. Where `data` is a copy in canonical form,
    `made_from` has the files that it was made from, "data" and others by role: it is them that the results name.

    Raises:
        InputError: nothing to answer, more rounds than records, or a folder named twice.
        RecordError, ImageError: a record or its image is broken.
    """
    named, reference = with_baseline(targets, baseline)
    records, images = matrix.check_records(data, options.limit, watch)
    if options.rounds > len(records):
        raise InputError(f"--rounds {options.rounds}: there are only {len(records)} records to deal out")
    intact, damaged = matrix.input_hashes(named)
    inputs = dict(made_from or {"data": data}) | {f"row {name}": path for name, path in intact.items()}
    return Plan(named, data, records, images, options, reference, inputs, damaged)


def failures(results: Mapping[str, Any]) -> list[str]:
    """The names of the rows that failed."""
    return [row["name"] for row in results["rows"] if row["status"] == "failed"]
