"""VLMEvalKit's files: a data set as TSV with its pictures inside, and a TSV of predictions for each model.

Read from ms-vlmeval 0.0.20: a data set has the columns index, image (base64, or the index of a row that holds the same
picture), question and answer; an evaluation file repeats index, question and answer and adds prediction. Its RefCOCO
class also wants the pixel box and the picture's size, a picture in every row, and evaluates rows as SPLIT_INDEX.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune_bench.exports.rows import file_name, fractions, identity, picture_bytes, questions, referring, said
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.scores import Row
from edgetune_runtime.images.load import upright_size


def write(name: str, answers: Answers, folder: Path) -> list[str]:
    """Write NAME_vqa.tsv and NAME_refcoco.tsv, and MODEL_NAME_vqa.tsv and MODEL_NAME_refcoco.tsv of predictions.

    Several accepted answers are one cell that holds a list. Boxes are predicted in fractions of width and height,
    `[x1, y1, x2, y2]`. Returns what was left out.
    """
    first = next(iter(answers.values()))
    phrases, left_out = referring(first)
    asked = questions(first)
    if asked:
        _table(
            [line | _vqa(row) for line, row in zip(_pictures(asked), asked, strict=True)], folder / f"{name}_vqa.tsv"
        )
    if phrases:
        lines = [{"index": n, "image": _encoded(row), **_phrase(row, name)} for n, row in enumerate(phrases)]
        _table(lines, folder / f"{name}_refcoco.tsv")
    for model, rows in answers.items():
        file = file_name(model)
        if asked:
            lines = [{"index": n, **_vqa(row), "prediction": row["raw"]} for n, row in enumerate(questions(rows))]
            _table(lines, folder / f"{file}_{name}_vqa.tsv")
        if phrases:
            chosen = enumerate(referring(rows)[0])
            lines = [{"index": f"{name}_{n}", **_asked(row), "prediction": said(row)} for n, row in chosen]
            _table(lines, folder / f"{file}_{name}_refcoco.tsv")
    return left_out


def _pictures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Index and picture of each row; a picture that an earlier row holds is that row's index."""
    first: dict[str, int] = {}
    lines = []
    for number, row in enumerate(rows):
        holder = first.setdefault(row["image"], number)
        lines.append({"index": number, "image": _encoded(row) if holder == number else holder})
    return lines


def _encoded(row: Row) -> str:
    return base64.b64encode(picture_bytes(Path(row["image"]))).decode("ascii")


def _vqa(row: Row) -> dict[str, Any]:
    answers = row["expected"]
    answer = answers[0] if len(answers) == 1 else repr(list(answers))
    return {"id": identity(row), "question": row["text"], "answer": answer}


def _asked(row: Row) -> dict[str, Any]:
    return {"id": identity(row), "question": row["text"], "answer": fractions(row, row["truth"][0])}


def _phrase(row: Row, name: str) -> dict[str, Any]:
    width, height = upright_size(Path(row["image"]))
    box = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), row["truth"][0], strict=True))
    return {**_asked(row), **box, "width": width, "height": height, "split": name}


def _table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
