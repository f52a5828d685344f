"""Label Studio's JSON export: rectangles in percent of the picture become boxes, choices and texts become answers.

Format: labelstud.io/guide/export, "JSON"; regions as labelstud.io/tags/rectanglelabels describes. A text on a rectangle
(`perRegion`) is the phrase that it is found by; otherwise its label is, one record for all rectangles of a label on one
picture. A task may show several pictures, in several <Image> tags (a region's `to_name`) or as the pages of one
(`valueList`, a region's `item_index`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from edgetune_data.formats.base import ABSENT, BOXES, Format, Row, Source, Value, absent_value
from edgetune_data.formats.sniffing import is_json_lines
from edgetune_data.frames import frame_of, is_turned, xywh_to_xyxy
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records.forms import FormError

_RECTANGLES = ("rectanglelabels", "rectangle", "labels")
_ANSWERS = ("choices", "textarea")
_UPLOAD = "/data/upload/"
_LOCAL = "/data/local-files/"
_SERVER = ("/data/", "s3://", "gs://", "azure-blob://")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
Entry = Mapping[str, Any]
Shown = tuple[str, int | None]
"""Which picture of a task: the <Image> tag and the page, None for a tag that has one picture."""


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each phrase and each question of a task.

    Raises:
        InputError: the file is no export in the "JSON" format.
    """
    tasks = [] if is_json_lines(source.path) else read_json_value(source.path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks) or not tasks:
        raise InputError(f"{source.path}: not a Label Studio export", hint='export as "JSON", not "JSON-MIN" or others')
    one_tag = len(_tags(tasks)) == 1
    for index, task in enumerate(tasks):
        place = f"#{task.get('id', index)}"
        try:
            annotations = _submitted(task)
            if not annotations:
                source.notes["tasks without a submitted annotation, of which no record is made"] += 1
                continue
            view = _View(source, task, one_tag)
            made = list(_phrases(view, annotations)) + list(_questions(view, annotations))
            made += list(_absent(view, annotations))
        except FormError as error:
            yield Row(source.path, place, task, partial(_refuse, error))
            continue
        if not made:
            source.notes["tasks whose annotation is empty, of which no record is made"] += 1
        for name, build in made:
            yield Row(source.path, f"{place}/{name}", task, build)


def _tags(tasks: Sequence[Entry]) -> set[str]:
    """Return the names of all <Image> tags that something was drawn or said about."""
    given = [task.get("annotations") for task in tasks]
    annotations = [entry for group in given if isinstance(group, list) for entry in group if isinstance(entry, dict)]
    results = [entry.get("result") for entry in annotations]
    return {
        _shown(entry)[0]
        for group in results
        if isinstance(group, list)
        for entry in group
        if isinstance(entry, dict) and entry.get("type") in (*_RECTANGLES, *_ANSWERS)
    }


def _shown(entry: Entry) -> Shown:
    """Return which picture of its task a region or an answer is about."""
    page = entry.get("item_index")
    return str(entry.get("to_name") or "image"), page if type(page) is int else None


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


def _phrases(view: _View, annotations: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Yield (name of the row, builder) for what was boxed."""
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
    groups: dict[tuple[Shown, str], list[tuple[str, Entry]]] = {}
    for region in regions.values():
        if "box" not in region:
            continue  # a text about the whole picture: a question's answer
        if len(region["texts"]) > 1 or len(region["names"]) > 1:
            raise FormError(f"a rectangle has several names: {[*region['texts'], *region['names']]}")
        if not (region["texts"] or region["names"]):
            raise FormError("a rectangle has no label")
        name = (region["names"] or region["texts"])[0]
        phrase = (region["texts"] or region["names"])[0]
        groups.setdefault((_shown(region["box"]), phrase), []).append((name, region["box"]))
    several = len({shown for shown, _ in groups}) > 1
    for (shown, phrase), entries in groups.items():
        yield _row_name(shown, phrase, several), partial(_ground, view, shown, phrase, entries)


def _row_name(shown: Shown, name: str, several: bool) -> str:
    """Return what tells a record of a task from its others; the picture is named where there are several."""
    tag, page = shown
    return f"{tag if page is None else f'{tag}[{page}]'}/{name}" if several else name


def _ground(view: _View, shown: Shown, phrase: str, entries: Sequence[tuple[str, Entry]]) -> Value:
    image = view.picture(shown)
    value: Value = {"image": image, "text": phrase, "bbox": [_box(view.source, image, entry) for _, entry in entries]}
    names = [name for name, _ in entries]
    if any(name != phrase for name in names):
        value["label"] = names
    return value


def _absent(view: _View, annotations: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Yield (name of the row, builder) for phrases that were looked for and of which nothing was boxed.

    A task of one picture alone says which picture that is where nothing was drawn.
    """
    results = [entry for annotation in annotations for entry in _results(annotation, (*_RECTANGLES, "textarea"))]
    boxed = {str(entry.get("id")) for entry in results if entry["type"] in _RECTANGLES}
    named: set[str] = set()
    for entry in results:
        if str(entry.get("id")) in boxed:
            for key in ("rectanglelabels", "labels", "text"):
                named |= set(_texts(entry["value"].get(key) or []))
    shown: Shown = next((_shown(entry) for entry in results if entry["type"] in _RECTANGLES), ("image", None))
    for phrase in view.source.options.absent:
        if phrase not in named:
            yield phrase, partial(_nothing, view, shown, phrase)


def _nothing(view: _View, shown: Shown, phrase: str) -> Value:
    return absent_value(view.picture(shown), phrase)


def _box(source: Source, image: str, entry: Entry) -> list[float]:
    """Return a rectangle, given in percent of width and height, in pixels of the upright picture."""
    value = entry["value"]
    for what, degrees in (("rectangle is", value.get("rotation")), ("picture was", entry.get("image_rotation"))):
        if _is_turned(degrees):
            raise FormError(
                f"the {what} rotated by {degrees} degrees", hint="boxes are upright; draw it without rotation"
            )
    numbers = [value.get(key) for key in ("x", "y", "width", "height")]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise FormError(f"a rectangle has x, y, width and height in percent, got {numbers}")
    size = entry.get("original_width"), entry.get("original_height")
    frame = frame_of(image, orientation=source.options.orientation, declared=None if None in size else size)
    return frame.upright([number / 100 for number in xywh_to_xyxy(numbers)], unit="norm1")


def _is_turned(degrees: Any) -> bool:
    """Whether a rotation in degrees (None for none) is one."""
    if degrees is None:
        return False
    if not isinstance(degrees, int | float) or not math.isfinite(degrees):
        raise FormError(f"a rotation is a number of degrees, got {degrees!r}")
    return is_turned(degrees)


def _questions(view: _View, annotations: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Yield (name of the row, builder) for what was chosen or written about a whole picture, of all annotators."""
    answers: dict[tuple[Shown, str], list[str]] = {}
    for annotation in annotations:
        boxes = {str(entry.get("id")) for entry in _results(annotation, _RECTANGLES)}
        for entry in _results(annotation, _ANSWERS):
            if str(entry.get("id")) in boxes:
                if entry["type"] == "choices":
                    raise FormError("choices on a rectangle are not supported", hint="use labels or a text on it")
                continue
            answers.setdefault((_shown(entry), str(entry.get("from_name"))), []).append(_answer(entry))
    several = len({shown for shown, _ in answers}) > 1
    alone = len({control for _, control in answers}) == 1
    for (shown, control), given in answers.items():
        yield _row_name(shown, control, several), partial(_vqa, view, shown, control, given, alone=alone)


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


def _vqa(view: _View, shown: Shown, control: str, answers: list[str], *, alone: bool) -> Value:
    question = view.source.options.questions.get(control)
    question = question or (view.task["data"].get("question") if alone else None)
    if not question:
        raise FormError(
            f"the export does not say which question {control!r} answers", hint=f'--question "{control}=What ...?"'
        )
    return {"image": view.picture(shown), "question": question, "answer": answers}


@dataclass(frozen=True)
class _View:
    """The pictures of one task.

    Attributes:
        source: the export.
        task: one of its tasks.
        one_tag: whether the whole export speaks of one <Image> tag, so that `--column image=NAME` can mean it.
    """

    source: Source
    task: Entry
    one_tag: bool

    def picture(self, shown: Shown) -> str:
        """Return the path of the picture that a tag shows on a page.

        Raises:
            FormError: the export does not say which one that is, or it is on the server.
        """
        tag, page = shown
        key = self._key(tag, paged=page is not None)
        reference = self.task["data"][key]
        if isinstance(reference, list):
            if page is None and len(reference) > 1:
                raise FormError(f"{key!r} has {len(reference)} pages, and the annotation does not say which is meant")
            if not 0 <= (page or 0) < len(reference):
                raise FormError(f"the annotation is about page {page} of {key!r}, which has {len(reference)} (from 0)")
            reference = reference[page or 0]
        elif page is not None:
            raise FormError(f"the annotation is about page {page}, but {key!r} is one picture")
        return self._path(reference)

    def _key(self, tag: str, *, paged: bool) -> str:
        """Return the entry of the task's data that a tag shows; the export itself does not hold the tags' values."""
        data, columns = self.task["data"], self.source.options.columns
        known = ", ".join(map(repr, data))
        chosen = columns.get(tag) or (columns.get("image") if self.one_tag else None)
        if chosen is not None:
            if chosen not in data:
                raise FormError(f"no {chosen!r} in the task's data: {known}", hint=f"--column {tag}=NAME")
            return chosen
        fitting = [str(key) for key, value in data.items() if _is_picture(value, paged=paged)]
        if not paged and "image" in data and "image" not in fitting:
            fitting.append("image")  # whatever it holds: what is wrong with it is told where it is opened
        if tag in fitting:
            return tag
        if len(fitting) > 1 or (not self.one_tag and fitting):
            raise FormError(
                f"the export does not say which of {', '.join(map(repr, fitting))} the image tag {tag!r} shows",
                hint=f"--column {tag}=NAME says it, once for each tag",
            )
        if not fitting:
            what = "list of pages" if paged else "picture"
            raise FormError(f"no {what} in the task's data: {known}", hint=f"--column {tag}=NAME")
        return fitting[0]

    def _path(self, reference: Any) -> str:
        pictures, root = self.source.pictures, self.source.options.image_root
        if not isinstance(reference, str) or not reference.startswith(_SERVER):
            return pictures.path(reference)
        if not root:
            raise FormError(
                f"the picture is at {reference}, on the Label Studio server",
                hint="copy its media folder and name it with --image-root",
            )
        return pictures.path(_below_root(reference, root))


def _is_picture(value: Any, *, paged: bool) -> bool:
    """Whether an entry of a task's data looks like a picture, or like a list of them (pages)."""
    if isinstance(value, list):
        return bool(value) and all(_is_picture(page, paged=False) for page in value)
    if paged or not isinstance(value, str):
        return False
    return value.startswith((*_SERVER, "data:image/")) or urlsplit(value).path.lower().endswith(_ENDINGS)


def _below_root(reference: str, root: Path) -> str:
    """Return where a server's picture lies below its copied media folder."""
    parts = urlsplit(reference)
    if reference.startswith(_LOCAL):
        return parse_qs(parts.query).get("d", [""])[0]
    path = parts.path.removeprefix(_UPLOAD).lstrip("/")
    # The address of an upload is percent-encoded, its file is not; keys of a bucket are written as they are.
    return unquote(path) if reference.startswith(_UPLOAD) and not (root / path).is_file() else path


FORMAT = Format(
    name="labelstudio",
    title="Label Studio's JSON export",
    sniff=lambda found: not found.is_json_lines and isinstance(found.telling.get("data"), dict),
    rows=rows,
    options=BOXES
    | ABSENT
    | {
        "questions": "the name of a labelling control and the question that it answers",
        "columns": "the entry of a task that an image tag shows, as TAG=NAME",
    },
)
