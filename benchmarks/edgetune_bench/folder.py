"""The folder of a measurement: results.json, table.md, predictions/NAME.jsonl, and report.html when asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edgetune_bench import table
from edgetune_runtime.bench import predictions, results
from edgetune_runtime.bench.matrix import images_sha256, slug
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.bench.results import Results
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import decode_json

RESULTS, TABLE, PREDICTIONS, REPORT = "results.json", "table.md", "predictions", "report.html"


def write(folder: Path, found: Results, answers: Answers, *, report: bool, pictures: Sequence[str] = ()) -> None:
    """Write results and answers into an empty place of `folder`.

    Args:
        folder: where to.
        found: the results.
        answers: predictions of the rows that ran, by name.
        report: whether to write the page, too.
        pictures: the picture of each record, for the page; none where the pictures are not here.
    """
    text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    tables = (table.accuracy_table(found.rows), table.cost_table(found.rows), table.curve_table(found.rows))
    parts = [table.markdown(lines) for lines in tables if lines]
    remarks = [*([found.shard_remark] if found.shard_remark else []), *table.remarks(found.rows)]
    parts += [f"- {table.escape(remark)}\n" for remark in remarks]
    (folder / TABLE).write_text("\n".join(parts), encoding="utf-8")
    (folder / PREDICTIONS).mkdir()
    for name, said in answers.items():
        lines = "".join(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n" for answer in said)
        (folder / PREDICTIONS / f"{slug(name)}.jsonl").write_text(lines, encoding="utf-8")
    if report:
        from edgetune_bench.report import report_page

        (folder / REPORT).write_text(report_page(found, answers, pictures), encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read results.json, or the file that `edgetune-run bench` wrote; a folder stands for the results.json in it.

    Raises:
        InputError: as `results.read_results`.
    """
    return results.read_results(path / RESULTS if path.is_dir() else path)


def read_answers(path: Path, found: Results) -> dict[str, tuple[Prediction, ...]]:
    """Read the answers of every row that ran: from the results themselves, or from the predictions beside them.

    Raises:
        InputError: they are not there, an answer is not one, or there is not one for each record.
    """
    place = path if path.is_dir() else path.parent
    answers = {}
    for row in found.ran:
        file = place / PREDICTIONS / f"{slug(row.name)}.jsonl"
        answers[row.name] = row.answers if row.answers is not None else _read_lines(file, row.name)
        if len(answers[row.name]) != found.data.records:
            where = f"{path}: {row.name}: {len(answers[row.name])} answers"
            raise InputError(f"{where} where there are {found.data.records} records", hint="copy the whole file again")
    return answers


def measured_pictures(results: Results, answers: Answers) -> list[str]:
    """The picture of each record, or none unless all of them are on this machine and are those that were measured.

    A file from elsewhere may name any picture of this machine; what it names is shown to others only where the sha256
    over all of them is that of the data.
    """
    said = next(iter(answers.values()), ())
    paths = [Path(answer.image) for answer in said]
    try:
        same = all(path.is_file() for path in paths) and images_sha256(paths) == results.data.images_sha256
    except OSError:
        return []
    return [answer.image for answer in said] if same else []


def _read_lines(file: Path, row: str) -> tuple[Prediction, ...]:
    if not file.is_file():
        raise InputError(f"{file}: missing, so the answers of {row} are unknown", hint="copy the whole folder")
    lines = file.read_bytes().splitlines()
    answers = []
    for number, line in enumerate(lines, 1):
        value = decode_json(line, f"{file}:{number}")
        try:
            answers.append(predictions.read(value))
        except InputError as error:
            raise InputError(f"{file}:{number}: {error}") from error
    return tuple(answers)
