"""Visual question answering: VQAv2's pair of files, or flat lists with question and answers.

Formats: visualqa.org/vqa_v2_teaser.html (a questions file and an annotations file); flat objects with image, question
and answer or answers, as DocVQA ({"data": [...]}) and VizWiz have them. All accepted answers are kept, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgetune_data.formats.base import (
    TURNS_OPTIONS,
    Format,
    Row,
    Source,
    Value,
    carried,
    object_rows,
    objects_of,
)
from edgetune_data.formats.sniffing import Sniffed, is_json_lines
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records.forms import FormError

_IDS = ("id", "question_id", "questionId")
_OURS = ("image", "question", "answer", "answers")


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the flat file, or the questions and their annotations, given a folder or the questions.

    Raises:
        InputError: a file of the pair is missing, or several could be meant.
    """
    if path.is_dir():
        path = _one(path, "*questions*.json", options.split)
    if not is_questions(path):
        return [path]
    if options.annotations:
        return [path, options.annotations]
    # v2_OpenEnded_mscoco_train2014_questions.json belongs to v2_mscoco_train2014_annotations.json
    return [path, _one(path.parent, "*annotations*.json", path.stem.removesuffix("_questions").rpartition("_")[2])]


def is_questions(path: Path) -> bool:
    """Whether a file is named like the questions of a pair."""
    return path.suffix == ".json" and path.stem.endswith("questions")


def _one(folder: Path, pattern: str, part: str | None) -> Path:
    found = sorted(folder.glob(pattern))
    chosen = [file for file in found if part and part in file.stem] or found
    if len(chosen) != 1:
        names = ", ".join(file.name for file in chosen) or "none"
        raise InputError(f"{folder}: needs one {pattern} file, found {names}", hint="--annotations names it")
    return chosen[0]


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each question."""
    found = files(source.path, source.options)
    if len(found) == 2:
        yield from _pair(source, *found)
        return
    [path] = found
    if is_json_lines(path):
        yield from object_rows(path, partial(_flat, source))
        return
    value = read_json_value(path)
    key = next((key for key in ("data", "questions", "annotations") if isinstance(value, dict) and key in value), None)
    yield from object_rows(path, partial(_flat, source), key=key)


def _pair(source: Source, questions: Path, annotations: Path) -> Iterator[Row]:
    whole = read_json_value(questions)
    answers: dict[Any, Mapping[str, Any]] = {}
    for entry in objects_of(annotations, read_json_value(annotations), "annotations"):
        if entry.get("question_id") in answers:
            raise InputError(f"{annotations}: question {entry.get('question_id')} is answered twice")
        answers[entry.get("question_id")] = entry
    subtype = whole.get("data_subtype")
    for question in objects_of(questions, whole, "questions"):
        name = question.get("question_id")
        build = partial(_asked, source, question, answers.pop(name, None), subtype)
        yield Row(questions, f"#{name}", question, build)
    for name in answers:
        yield Row(annotations, f"#{name}", answers[name], partial(_without_question, name))


def _without_question(name: Any) -> Value:
    raise FormError(f"there is no question {name!r}")


def _asked(source: Source, question: Mapping[str, Any], answer: Mapping[str, Any] | None, subtype: Any) -> Value:
    if answer is None:
        raise FormError(f"question {question.get('question_id')!r} has no answers")
    if answer.get("image_id") != question.get("image_id"):
        raise FormError(f"its answers are about picture {answer.get('image_id')!r}, not {question.get('image_id')!r}")
    image = question.get("image")
    if image is None:
        if not isinstance(subtype, str) or type(question.get("image_id")) is not int:
            raise FormError("no picture: neither 'image' nor 'image_id' with the file's 'data_subtype'")
        image = f"COCO_{subtype}_{question['image_id']:012d}.jpg"
    meta = {key: answer[key] for key in ("question_type", "answer_type") if key in answer}
    value: Value = {
        "image": source.pictures.path(image),
        "question": question.get("question"),
        "answer": _texts(answer.get("answers")),
        "id": question.get("question_id"),
    }
    return value | ({"meta": meta} if meta else {})


def _flat(source: Source, record: Mapping[str, Any]) -> Value:
    for key in ("image", "question"):
        if record.get(key) is None:
            raise FormError(f"missing key {key!r}", hint="a record has image, question and answer or answers")
    if "answer" in record and "answers" in record:
        raise FormError("'answer' and 'answers'", hint="leave one of them out")
    answers = record.get("answers", record.get("answer"))
    value: Value = {"image": source.pictures.path(record["image"]), "question": record["question"]}
    value["answer"] = answers if isinstance(answers, str) else _texts(answers)
    name = next((record[key] for key in _IDS if record.get(key) is not None), None)
    meta = carried(record, (*_OURS, *_IDS))
    return value | ({} if name is None else {"id": name}) | ({"meta": meta} if meta else {})


def _texts(answers: Any) -> list[Any]:
    """Return the accepted answers, from texts or from objects such as {"answer": "yes", "answer_id": 1}."""
    if not isinstance(answers, list) or not answers:
        raise FormError(f"'answers' must be a list, not empty, got {answers!r}")
    return [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]


def _sniff(found: Sniffed) -> bool:
    if found.is_folder:
        return any(name.endswith("questions.json") for name in found.names)
    if "questions" in found.keys or (found.keys and isinstance(found.value.get("data"), list)):
        return True
    return {"question", "image"} <= set(found.telling)


FORMAT = Format(
    name="vqa",
    title="VQAv2's pair of files; flat lists of question and answers",
    sniff=_sniff,
    rows=rows,
    options=TURNS_OPTIONS
    | {
        "split": "which of several questions files of a folder, told by its name",
        "annotations": "the file with the answers, where its name does not tell",
    },
    files=files,
)
