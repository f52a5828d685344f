"""EvalScope's files: data sets of `general_vqa`, `general_qa` and `refcoco`, and predictions where its cache looks.

Read from evalscope 1.14: `general_vqa` takes JSONL with OpenAI messages and an answer, `general_qa` a query and a
response; `refcoco` takes lmms-lab's columns, boxes as x, y, width, height; a prediction is a `ModelResult` in
`predictions/MODEL/BENCHMARK_SUBSET.jsonl`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune_bench.exports.rows import file_name, identity, picture_bytes, questions, referring, said
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.scores import Row
from edgetune_runtime.errors import MissingDependency

_SPLIT = "test"


def write(name: str, answers: Answers, folder: Path) -> list[str]:
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
        if several := sum(len(set(row["expected"])) > 1 for row in asked):
            left_out.append(f"further accepted answers of {several} questions: both have one, the most frequent")
    if phrases:
        _parquet([_phrase(number, row) for number, row in enumerate(phrases)], folder / "refcoco" / "data")
    for model, rows in answers.items():
        place = folder / "predictions" / file_name(model)
        place.mkdir(parents=True)
        if asked:
            results = [_result(number, model, row["text"], row["raw"]) for number, row in enumerate(questions(rows))]
            for benchmark in _WORDS:
                _lines(results, place / f"{benchmark}_{name}.jsonl")
        if phrases:
            results = [_result(n, model, row["text"], said(row)) for n, row in enumerate(referring(rows)[0])]
            _lines(results, place / f"refcoco_{_SPLIT}.jsonl")
    return left_out


def _vqa(row: Row) -> dict[str, Any]:
    content = [
        {"type": "text", "text": row["text"]},
        {"type": "image_url", "image_url": {"url": row["image"]}},
    ]
    return {"id": identity(row), "messages": [{"role": "user", "content": content}], "answer": _answer(row)}


def _qa(row: Row) -> dict[str, Any]:
    return {"id": identity(row), "query": row["text"], "response": _answer(row)}


_WORDS = {"general_vqa": _vqa, "general_qa": _qa}


def _answer(row: Row) -> str:
    answers: list[str] = row["expected"]
    return max(answers, key=answers.count)


def _phrase(number: int, row: Row) -> dict[str, Any]:
    x1, y1, x2, y2 = row["truth"][0]
    return {
        "question_id": str(identity(row)),
        "image": {"bytes": picture_bytes(Path(row["image"])), "path": Path(row["image"]).name},
        "question": "Please carefully observe the area in the image and come up with a caption for the area.",
        "answer": [row["text"]],
        "segmentation": [x1, y1, x2, y1, x2, y2, x1, y2],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "iscrowd": 0,
        "file_name": Path(row["image"]).name,
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
        hint = 'pip install "edgetune[data]"'
        raise MissingDependency("EvalScope's refcoco set is a parquet file, which pyarrow writes", hint=hint) from error
    folder.mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(list(rows)), folder / f"{_SPLIT}-00000-of-00001.parquet")
