"""The folder of a measurement: results.json, table.md, predictions/NAME.jsonl, and report.html when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune_bench import table
from edgetune_runtime.bench.matrix import slug
from edgetune_runtime.bench.plan import SCHEMA, Answers
from edgetune_runtime.bench.scores import Row
from edgetune_runtime.errors import InputError

RESULTS, TABLE, PREDICTIONS, REPORT = "results.json", "table.md", "predictions", "report.html"


def write(folder: Path, results: Mapping[str, Any], answers: Answers, *, report: bool) -> None:
    """Write results and answers into an empty place of `folder`."""
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    rows = results["rows"]
    parts = [*map(table.markdown, (table.accuracy_table(rows), table.cost_table(rows)))]
    parts += [f"- {remark}\n" for remark in table.remarks(rows)]
    (folder / TABLE).write_text("\n".join(parts), encoding="utf-8")
    (folder / PREDICTIONS).mkdir()
    for name, said in answers.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in said)
        (folder / PREDICTIONS / f"{slug(name)}.jsonl").write_text(lines, encoding="utf-8")
    if report:
        from edgetune_bench.report import report_page

        (folder / REPORT).write_text(report_page(results, answers), encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """Read results.json, or the file that `edgetune-run bench` wrote; a folder stands for the results.json in it.

    Raises:
        InputError: the file is missing, is not such a file, or another version wrote it.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file", hint="give what edgetune bench or edgetune-run bench wrote")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from error
    if not (isinstance(results, dict) and isinstance(results.get("rows"), list) and "data" in results):
        raise InputError(f"{file}: not the results of a measurement (no 'rows' or no 'data')")
    if results.get("schema") != SCHEMA:
        raise InputError(
            f"{file}: schema {results.get('schema')!r}, this version reads schema {SCHEMA}",
            hint="measure again with this version of edgetune",
        )
    return results


def read_answers(path: Path, results: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Read the answers of every row that ran: from the file itself, or from the predictions beside it.

    Raises:
        InputError: they are not there.
    """
    place = path if path.is_dir() else path.parent
    found = {}
    for row in results["rows"]:
        if row["status"] == "failed":
            continue
        name = row["name"]
        file = place / PREDICTIONS / f"{slug(name)}.jsonl"
        if "answers" in row:
            found[name] = row["answers"]
        elif file.is_file():
            with file.open(encoding="utf-8") as lines:
                found[name] = [json.loads(line) for line in lines]
        else:
            raise InputError(f"{file}: missing, so the answers of {name} are unknown", hint="copy the whole folder")
    return found
