"""Answers of an evaluation in the files of other evaluation suites, which then score them by their own rules.

COCO: an instances file and results files (cocodataset.org, "results format").

EvalScope, read from evalscope 1.14: `general_vqa` takes JSONL with OpenAI messages and an answer, `general_qa` a query
and a response; `refcoco` takes lmms-lab's columns, boxes as x, y, width, height; a prediction is a `ModelResult` in
`predictions/MODEL/BENCHMARK_SUBSET.jsonl`, where its cache looks.

VLMEvalKit, read from ms-vlmeval 0.0.20: a data set is a TSV with the columns index, image (base64, or the index of a
row that holds the same picture), question and answer; an evaluation file repeats index, question and answer and adds
prediction. Its RefCOCO class also wants the pixel box and the picture's size, a picture in every row, and evaluates
rows as SPLIT_INDEX.
"""

from __future__ import annotations

import base64
import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune_bench.average_precision import coco_results, coco_truth
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.predictions import GroundPrediction, Prediction, VqaPrediction, grounding, questions
from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.images.load import load_image, read_header, upright_size

_SPLIT = "test"  # of EvalScope's refcoco set


def write(answers: Answers, folder: Path, form: str, *, name: str) -> list[str]:
    """Write the answers of every row that ran in one of FORMATS, and return what was left out.

    Args:
        answers: predictions by the rows' names.
        folder: an empty folder.
        form: a key of FORMATS.
        name: what the data set is called there: letters, digits, "-" and "_".

    Raises:
        InputError: no row ran, the name has other signs, or the format cannot hold the answers.
        MissingDependency: a library that writes the format is not installed.
    """
    if not answers:
        raise InputError("no row has answers to export")
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"--name {name!r}: use letters, digits, - and _ only")
    return FORMATS[form](name, answers, folder)


def _coco(name: str, answers: Answers, folder: Path) -> list[str]:
    """Write NAME.json, an instances file, and results_MODEL.json for `COCO.loadRes`; returns what was left out.

    Image N is the N-th grounding record: COCO knows no phrases, so each phrase is an image of its own, of one category.

    Raises:
        InputError: there are no grounding records, or a box has no confidence, which COCO's ranking needs.
    """
    left_out = []
    for number, (model, rows) in enumerate(answers.items()):
        ground = grounding(rows)
        if not ground:
            raise InputError("no grounding records: COCO's files hold boxes only")
        if any(score is None for row in ground for score in row.confidences):
            raise InputError(
                f"{model}: boxes without a confidence, which COCO's ranking needs",
                hint="score the checkpoint, or its bundle with an engine that gives probabilities",
            )
        if number == 0:
            _dump(coco_truth(ground), folder / f"{name}.json")
            if len(ground) < len(rows):
                left_out.append(f"{len(rows) - len(ground)} questions: COCO's files hold boxes only")
        _dump(coco_results(ground), folder / f"results_{file_name(model)}.json")
    return left_out


def _dump(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _evalscope(name: str, answers: Answers, folder: Path) -> list[str]:
    """Write data sets and predictions; returns what was left out.

    - `general_vqa/NAME.jsonl` and `predictions/MODEL/general_vqa_NAME.jsonl`: the questions; as `general_qa` once more,
      without pictures;
    - `refcoco/data/test-00000-of-00001.parquet` and `predictions/MODEL/refcoco_test.jsonl`: the phrases with one
      target, for its mode `bbox_rec`.

    With `use_cache` set to the folder, `model` to the name of the folder in predictions/, and `rerun_review`, EvalScope
    scores these answers and asks no model.

    Raises:
        MissingDependency: pyarrow is not installed, which writes the parquet file.
    """
    first = next(iter(answers.values()))
    asked, (phrases, left_out) = questions(first), referring(first)
    if asked:
        for benchmark, convert in _WORDS.items():
            (folder / benchmark).mkdir()
            _lines([convert(row) for row in asked], folder / benchmark / f"{name}.jsonl")
        if several := sum(len(set(row.expected)) > 1 for row in asked):
            left_out.append(f"further accepted answers of {several} questions: both have one, the most frequent")
    if phrases:
        _parquet([_lmms_phrase(row) for row in phrases], folder / "refcoco" / "data")
    for model, rows in answers.items():
        place = folder / "predictions" / file_name(model)
        place.mkdir(parents=True)
        if asked:
            results = [_result(number, model, row.text, row.raw) for number, row in enumerate(questions(rows))]
            for benchmark in _WORDS:
                _lines(results, place / f"{benchmark}_{name}.jsonl")
        if phrases:
            results = [_result(n, model, row.text, said(row)) for n, row in enumerate(referring(rows)[0])]
            _lines(results, place / f"refcoco_{_SPLIT}.jsonl")
    return left_out


def _messages(row: VqaPrediction) -> dict[str, Any]:
    content = [
        {"type": "text", "text": row.text},
        {"type": "image_url", "image_url": {"url": row.image}},
    ]
    return {"id": identity(row), "messages": [{"role": "user", "content": content}], "answer": _answer(row)}


def _qa(row: VqaPrediction) -> dict[str, Any]:
    return {"id": identity(row), "query": row.text, "response": _answer(row)}


_WORDS = {"general_vqa": _messages, "general_qa": _qa}


def _answer(row: VqaPrediction) -> str:
    return max(row.expected, key=row.expected.count)


def _lmms_phrase(row: GroundPrediction) -> dict[str, Any]:
    x1, y1, x2, y2 = row.truth[0]
    return {
        "question_id": identity(row),
        "image": {"bytes": picture_bytes(Path(row.image)), "path": Path(row.image).name},
        "question": "Please carefully observe the area in the image and come up with a caption for the area.",
        "answer": [row.text],
        "segmentation": [x1, y1, x2, y1, x2, y2, x1, y2],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "iscrowd": 0,
        "file_name": Path(row.image).name,
    }


def _result(number: int, model: str, asked: str, text: str) -> dict[str, Any]:
    """EvalScope's `ModelResult` of the sample with this number in the data set."""
    answer = {"role": "assistant", "content": text, "model": model}
    output = {"model": model, "choices": [{"message": answer, "stop_reason": "stop"}]}
    messages = [{"role": "user", "content": asked}, answer]
    return {"index": number, "model": model, "model_output": output, "messages": messages, "metadata": {}}


def _lines(values: Sequence[Mapping[str, Any]], path: Path) -> None:
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")


def _parquet(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        hint = install_command("data")
        raise MissingDependency("EvalScope's refcoco set is a parquet file, which pyarrow writes", hint=hint) from error
    folder.mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(list(rows)), folder / f"{_SPLIT}-00000-of-00001.parquet")


def _vlmevalkit(name: str, answers: Answers, folder: Path) -> list[str]:
    """Write NAME_vqa.tsv and NAME_refcoco.tsv, and MODEL_NAME_vqa.tsv and MODEL_NAME_refcoco.tsv of predictions.

    Several accepted answers are one cell that holds a list. Boxes are predicted in fractions of width and height,
    `[x1, y1, x2, y2]`. Returns what was left out.
    """
    first = next(iter(answers.values()))
    phrases, left_out = referring(first)
    asked = questions(first)
    if asked:
        _table(
            [line | _vqa_cells(row) for line, row in zip(_pictures(asked), asked, strict=True)],
            folder / f"{name}_vqa.tsv",
        )
    if phrases:
        lines = [{"index": n, "image": _encoded(row), **_phrase_cells(row, name)} for n, row in enumerate(phrases)]
        _table(lines, folder / f"{name}_refcoco.tsv")
    for model, rows in answers.items():
        file = file_name(model)
        if asked:
            lines = [{"index": n, **_vqa_cells(row), "prediction": row.raw} for n, row in enumerate(questions(rows))]
            _table(lines, folder / f"{file}_{name}_vqa.tsv")
        if phrases:
            chosen = enumerate(referring(rows)[0])
            lines = [{"index": f"{name}_{n}", **_asked(row), "prediction": said(row)} for n, row in chosen]
            _table(lines, folder / f"{file}_{name}_refcoco.tsv")
    return left_out


def _pictures(rows: Sequence[VqaPrediction]) -> list[dict[str, Any]]:
    """Index and picture of each row; a picture that an earlier row holds is that row's index."""
    first: dict[str, int] = {}
    lines = []
    for number, row in enumerate(rows):
        holder = first.setdefault(row.image, number)
        lines.append({"index": number, "image": _encoded(row) if holder == number else holder})
    return lines


def _encoded(row: Prediction) -> str:
    return base64.b64encode(picture_bytes(Path(row.image))).decode("ascii")


def _vqa_cells(row: VqaPrediction) -> dict[str, Any]:
    answers = row.expected
    answer = answers[0] if len(answers) == 1 else repr(list(answers))
    return {"id": identity(row), "question": row.text, "answer": answer}


def _asked(row: GroundPrediction) -> dict[str, Any]:
    return {"id": identity(row), "question": row.text, "answer": fractions(row, row.truth[0])}


def _phrase_cells(row: GroundPrediction, name: str) -> dict[str, Any]:
    width, height = upright_size(Path(row.image))
    box = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), row.truth[0], strict=True))
    return {**_asked(row), **box, "width": width, "height": height, "split": name}


def _table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def referring(rows: Sequence[Prediction]) -> tuple[list[GroundPrediction], list[str]]:
    """The answers about exactly one target, all that a RefCOCO-style set can hold, and what is left out."""
    ground = grounding(rows)
    kept = [row for row in ground if len(row.truth) == 1]
    lost = len(ground) - len(kept)
    return kept, [f"{lost} phrases with no or several targets: a RefCOCO-style set has exactly one"] if lost else []


def fractions(row: GroundPrediction, box: Sequence[float]) -> str:
    """A box as `[x1, y1, x2, y2]` in fractions of width and height: what both suites' readers take for normalised."""
    width, height = upright_size(Path(row.image))
    return "[" + ", ".join(f"{value:.6f}" for value in _scaled(box, width, height)) + "]"


def said(row: GroundPrediction) -> str:
    """The first box of an answer in fractions, or nothing: suites that look for numbers find none then."""
    return fractions(row, row.boxes[0]) if row.boxes else ""


def picture_bytes(path: Path) -> bytes:
    """The file as it is, or upright as PNG where it is stored on its side, which other readers may not turn."""
    *_, turn = read_header(path)
    if turn == 1:
        return path.read_bytes()
    buffer = io.BytesIO()
    load_image(path).save(buffer, "PNG")
    return buffer.getvalue()


def file_name(model: str) -> str:
    """A row's name with letters, digits, `.`, `_` and `-` only: what suites make of a model's name, too."""
    return re.sub(r"[^\w.-]", "_", model)


def identity(row: Prediction) -> str:
    """The record's own id, or where it stands."""
    return row.id or row.source


def _scaled(box: Sequence[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1 / width, y1 / height, x2 / width, y2 / height]


FORMATS: Mapping[str, Callable[[str, Answers, Path], list[str]]] = {
    "coco": _coco,
    "evalscope": _evalscope,
    "vlmevalkit": _vlmevalkit,
}
"""Each writes the answers of every row into an empty folder and returns what it had to leave out, a line each."""
WITH_PICTURES = ("evalscope", "vlmevalkit")
"""Formats whose files hold the pictures."""
