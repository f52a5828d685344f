"""A measurement from its inputs to its files: what eval and bench have in common."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgetune_bench import gallery, machine, matrix, table
from edgetune_bench.launch import Failure
from edgetune_bench.matrix import Note, Options
from edgetune_bench.page import contact_sheet
from edgetune_bench.scores import compare, scored, summarise
from edgetune_bench.targets import Target, name_apart
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import sha256_tree
from edgetune_runtime.records import Record

RESULTS = "results.json"
SCHEMA = 1


@dataclass(frozen=True)
class Study:
    """Targets, records and settings whose input has been checked; `prepare` makes one.

    `inputs` and `settings` are what its result depends on. `baseline` names the row the others are compared with.
    """

    targets: Sequence[Target]
    data: Path
    records: Sequence[Record]
    options: Options
    baseline: str | None
    pictures: int
    inputs: Mapping[str, Path]
    settings: Mapping[str, Any]

    def build(self, folder: Path, note: Note) -> dict[str, Any]:
        """Run everything into `folder` and return the results, which are also written there.

        Writes results.json, table.md, predictions/NAME.jsonl for each row that ran, logs/ of workers that had
        something to say, and pictures.png when pictures were asked for.
        """
        outcomes = matrix.run_matrix(self.targets, self.data, self.records, folder, self.options, note)
        answers = {name: scored(run["rows"]) for name, run in outcomes.items() if not isinstance(run, Failure)}
        rows = [self._row(target, outcomes[target.name], answers) for target in self.targets]
        results = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "options": self.options.to_dict(),
            "data": {
                "path": str(self.data),
                "records": len(self.records),
                "images_sha256": self.settings["images_sha256"],
            },
            "inputs": {name: {"path": str(path), "sha256": sha256_tree(path)} for name, path in self.inputs.items()},
            "baseline": self.baseline,
            "rows": rows,
        }
        self._write(folder, results, answers)
        return results

    def _row(
        self, target: Target, outcome: matrix.Report | Failure, answers: Mapping[str, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"name": target.name, "path": str(target.path), "kind": target.kind}
        if isinstance(outcome, Failure):
            failure = {"status": "failed", "reason": outcome.reason, "exit_code": outcome.exit_code}
            return row | {"baseline": target.name == self.baseline} | failure
        row |= {"baseline": target.name == self.baseline, "status": "ok"} | summarise(outcome, answers[target.name])
        if target.name == self.baseline:
            return row
        reference = answers.get(self.baseline) if self.baseline else None
        return row | ({"delta": compare(answers[target.name], reference)} if reference else {})

    def _write(self, folder: Path, results: Mapping[str, Any], answers: Mapping[str, list[dict[str, Any]]]) -> None:
        (folder / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        rows = results["rows"]
        parts = [*map(table.markdown, (table.accuracy_table(rows), table.cost_table(rows)))]
        parts += [f"- {remark}\n" for remark in table.remarks(rows)]
        (folder / "table.md").write_text("\n".join(parts), encoding="utf-8")
        (folder / gallery.PREDICTIONS).mkdir()
        for name, rows in answers.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / gallery.PREDICTIONS / f"{matrix.slug(name)}.jsonl").write_text(lines, encoding="utf-8")
        for log in (folder / "logs").iterdir():
            if log.stat().st_size == 0:
                log.unlink()
        if self.pictures and answers:
            sources = gallery.choose(next(iter(answers.values())), self.pictures)
            if sources:
                contact_sheet(gallery.samples(answers, sources)).save(folder / "pictures.png")


def prepare(
    targets: Sequence[Target], data: Path, *, options: Options, baseline: Target | None = None, pictures: int = 0
) -> Study:
    """Check all input before anything runs: records, images, folders, names.

    A baseline that is not among the targets becomes the first row. Without one, the only checkpoint among several
    targets is it.

    Raises:
        InputError: nothing to answer, more rounds than records, or a folder named twice.
        RecordError, ImageError: a record or its image is broken.
    """
    rows = list(targets)
    if baseline is None:
        checkpoints = [target for target in rows if target.kind == "checkpoint"]
        chosen = checkpoints[0] if len(checkpoints) == 1 and len(rows) > 1 else None
    else:
        place = baseline.path.resolve()
        chosen = next((target for target in rows if target.path.resolve() == place and not target.adapter), None)
        if chosen is None:
            chosen = baseline
            rows.insert(0, baseline)
    named = name_apart(rows)
    records, images = matrix.check_records(data, options.limit)
    if options.rounds > len(records):
        raise InputError(f"--rounds {options.rounds}: there are only {len(records)} records to deal out")
    intact, damaged = matrix.input_hashes(named)
    return Study(
        targets=named,
        data=data,
        records=records,
        options=options,
        baseline=None if chosen is None else named[rows.index(chosen)].name,
        pictures=pictures,
        inputs={"data": data} | {f"row {name}": path for name, path in intact.items()},
        settings={
            **options.to_dict(),
            "rows": [target.name for target in named],
            "baseline": None if chosen is None else named[rows.index(chosen)].name,
            "pictures": pictures,
            "images_sha256": images,
            "damaged": damaged,
            "machine": machine.describe(),
        },
    )


def failures(results: Mapping[str, Any]) -> list[str]:
    """The names of the rows that failed."""
    return [row["name"] for row in results["rows"] if row["status"] == "failed"]
