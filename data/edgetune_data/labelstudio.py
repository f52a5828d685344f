"""Label Studio's JSON export: rectangles in percent of the picture become boxes, choices and texts become answers.

Format: labelstud.io/guide/export, "JSON"; regions as labelstud.io/tags/rectanglelabels describes. A text on a rectangle
(`perRegion`) is the phrase that it is found by; otherwise its label is, one record for all rectangles of a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from edgetune_data.frames import frame_of, xywh_to_xyxy
from edgetune_data.source import Options, Row, Source, Value, is_json_lines, read_json
from edgetune_runtime.errors import InputError
from edgetune_runtime.records.forms import FormError

_RECTANGLES = ("rectanglelabels", "rectangle", "labels")
_ANSWERS = ("choices", "textarea")
_UPLOAD = "/data/upload/"
_LOCAL = "/data/local-files/"
Entry = Mapping[str, Any]


def files(path: Path, options: Options) -> list[Path]:
    """Return the export."""
    return [path]


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each phrase and each question of a task.

    Raises:
        InputError: the file is no export in the "JSON" format.
    """
    tasks = [] if is_json_lines(source.path) else read_json(source.path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks) or not tasks:
        raise InputError(f"{source.path}: not a Label Studio export", hint='export as "JSON", not "JSON-MIN" or others')
    for index, task in enumerate(tasks):
        place = f"#{task.get('id', index)}"
        try:
            annotations = _submitted(task)
            if not annotations:
                source.notes["tasks without a submitted annotation, of which no record is made"] += 1
                continue
            made = list(_phrases(source, task, annotations)) + list(_questions(source, task, annotations))
        except FormError as error:
            yield Row(source.path, place, task, partial(_refuse, error))
            continue
        if not made:
            source.notes["tasks whose annotation is empty, of which no record is made"] += 1
        for name, build in made:
            yield Row(source.path, f"{place}/{name}", task, build)


def _submitted(task: Entry) -> list[Entry]:
    """Return the annotations that count: those marked as ground truth, or else all that were not cancelled."""
    given = task.get("annotations") or []
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise FormError("'annotations' must be a list of objects")
    if not isinstance(task["data"], dict):
        raise FormError("'data' must be an object")
    kept = [entry for entry in given if not entry.get("was_cancelled")]
    return [entry for entry in kept if entry.get("ground_truth")] or kept


def _refuse(error: FormError) -> Value:
    raise error


def _results(annotation: Entry, kinds: Sequence[str]) -> list[dict[str, Any]]:
    results = annotation.get("result")
    if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
        raise FormError("'result' of an annotation must be a list of objects")
    for entry in results:
        if entry.get("type") not in (*_RECTANGLES, *_ANSWERS):
            raise FormError(
                f"annotations of type {entry.get('type')!r} are not supported",
                hint="rectangles, choices and text areas are read",
            )
        if not isinstance(entry.get("value"), dict):
            raise FormError("'value' of a result must be an object")
    return [entry for entry in results if entry["type"] in kinds]


def _phrases(source: Source, task: Entry, annotations: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Yield (phrase, builder) for what was boxed."""
    boxed = [annotation for annotation in annotations if _results(annotation, _RECTANGLES)]
    if not boxed:
        return
    if len(boxed) > 1:
        raise FormError(
            f"{len(boxed)} annotations have boxes", hint="mark one of them as ground truth, or export one annotator"
        )
    regions: dict[Any, dict[str, Any]] = {}
    for entry in _results(boxed[0], (*_RECTANGLES, "textarea")):
        region = regions.setdefault(str(entry.get("id")), {"names": [], "texts": []})
        value = entry["value"]
        if entry["type"] in _RECTANGLES:
            region["box"] = entry
            region["names"] += _texts(value.get("rectanglelabels") or value.get("labels") or [])
        else:
            region["texts"] += _texts(value.get("text"))
    groups: dict[str, list[tuple[str, Entry]]] = {}
    for region in regions.values():
        if "box" not in region:
            continue  # a text about the whole picture: a question's answer
        if len(region["texts"]) > 1 or len(region["names"]) > 1:
            raise FormError(f"a rectangle has several names: {[*region['texts'], *region['names']]}")
        if not (region["texts"] or region["names"]):
            raise FormError("a rectangle has no label")
        name = (region["names"] or region["texts"])[0]
        groups.setdefault((region["texts"] or region["names"])[0], []).append((name, region["box"]))
    for phrase, entries in groups.items():
        yield phrase, partial(_ground, source, task, phrase, entries)


def _ground(source: Source, task: Entry, phrase: str, entries: Sequence[tuple[str, Entry]]) -> Value:
    image = _picture(source, task)
    value: Value = {"image": image, "text": phrase, "bbox": [_box(source, image, entry) for _, entry in entries]}
    names = [name for name, _ in entries]
    if any(name != phrase for name in names):
        value["label"] = names
    return value


def _box(source: Source, image: str, entry: Entry) -> list[float]:
    """Return a rectangle, given in percent of width and height, in pixels of the upright picture."""
    value = entry["value"]
    if value.get("rotation") or entry.get("image_rotation"):
        what = "rectangle is" if value.get("rotation") else "picture was"
        degrees = value.get("rotation") or entry["image_rotation"]
        raise FormError(f"the {what} rotated by {degrees} degrees", hint="boxes are upright; draw it without rotation")
    numbers = [value.get(key) for key in ("x", "y", "width", "height")]
    if not all(isinstance(number, int | float) for number in numbers):
        raise FormError(f"a rectangle has x, y, width and height in percent, got {numbers}")
    size = entry.get("original_width"), entry.get("original_height")
    declared = None if None in size else cast("tuple[int, int]", size)
    frame = frame_of(image, orientation=source.options.orientation, declared=declared)
    return frame.upright([number / 100 for number in xywh_to_xyxy(numbers)], unit="norm1")


def _questions(source: Source, task: Entry, annotations: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Yield (control, builder) for what was chosen or written about the whole picture, of all annotators."""
    answers: dict[str, list[str]] = {}
    for annotation in annotations:
        boxes = {str(entry.get("id")) for entry in _results(annotation, _RECTANGLES)}
        for entry in _results(annotation, _ANSWERS):
            if str(entry.get("id")) in boxes:
                if entry["type"] == "choices":
                    raise FormError("choices on a rectangle are not supported", hint="use labels or a text on it")
                continue
            answers.setdefault(str(entry.get("from_name")), []).append(_answer(entry))
    for control, given in answers.items():
        yield control, partial(_vqa, source, task, control, given, alone=len(answers) == 1)


def _answer(entry: Entry) -> str:
    texts = _texts(entry["value"].get("choices" if entry["type"] == "choices" else "text"))
    if not texts:
        raise FormError(f"{entry.get('from_name')!r} has no answer")
    if len(texts) > 1 and entry["type"] == "textarea":
        raise FormError(f"{entry.get('from_name')!r} has {len(texts)} texts, and one is an answer")
    return ", ".join(texts)


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise FormError(f"a label or an answer is a text, got {value!r}")
    return texts


def _vqa(source: Source, task: Entry, control: str, answers: list[str], *, alone: bool) -> Value:
    question = source.options.questions.get(control)
    question = question or (task["data"].get("question") if alone else None)
    if not question:
        raise FormError(
            f"the export does not say which question {control!r} answers", hint=f'--question "{control}=What ...?"'
        )
    return {"image": _picture(source, task), "question": question, "answer": answers}


def _picture(source: Source, task: Entry) -> str:
    """Return the path of the task's picture."""
    key, data = source.options.columns.get("image", "image"), task["data"]
    if key not in data:
        raise FormError(f"no {key!r} in the task's data: {', '.join(map(repr, data))}", hint="--column image=NAME")
    reference = data[key]
    if not isinstance(reference, str) or not reference.startswith(("/data/", "s3://", "gs://", "azure-blob://")):
        return source.pictures.path(reference)
    if not source.options.image_root:
        raise FormError(
            f"the picture is at {reference}, on the Label Studio server",
            hint="copy its media folder and name it with --image-root",
        )
    return source.pictures.path(_below_root(reference))


def _below_root(reference: str) -> str:
    """Return where a server's picture lies below its copied media folder."""
    parts = urlsplit(reference)
    if reference.startswith(_LOCAL):
        return parse_qs(parts.query).get("d", [""])[0]
    return parts.path.removeprefix(_UPLOAD).lstrip("/")
