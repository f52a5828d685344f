"""The JSON forms of a record, reduced to common parts. No file is touched here."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetune_runtime.errors import InputError

Box = list[float]

_IMAGE, _REF, _BOX = "<image>", "<ref-object>", "<bbox>"


class FormError(InputError):
    """A record does not have one of the known forms; the caller adds file and line."""


@dataclass
class Parts:
    """What every form boils down to; see `edgetune_runtime.records.Record` for the fields."""

    image: str
    text: str
    boxes: list[Box] | None = None
    labels: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    request: str | None = None


def read_form(record: Mapping[str, Any]) -> Parts:
    """Return the parts of a decoded record.

    Raises:
        FormError: no form has these keys, or a value has the wrong type.
    """
    for key, (read, required, optional) in _FORMS.items():
        if key in record:
            _check_keys(record, required, optional)
            return read(record)
    raise FormError(
        f"unknown form: keys {', '.join(map(repr, record)) or '(none)'}",
        hint='a record has "image" with "text" and "bbox", "question" and "answer", or "conversations"; '
        'or "messages" with "images"',
    )


def _check_keys(record: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> None:
    known = (*required, *optional)
    for key in record:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise FormError(
                f"unknown key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known keys of this form: {', '.join(known)}",
            )
    missing = [key for key in required if key not in record]
    if missing:
        raise FormError(f"missing key {missing[0]!r}", hint=f"this form needs {', '.join(required)}")


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise FormError(f"{key!r} must be a text that is not empty, got {value!r}")
    return value


def _box(value: Any) -> Box:
    numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not numbers or len(value) != 4 or not all(math.isfinite(x) for x in value):
        raise FormError(f"a bbox is four numbers [x1, y1, x2, y2], got {value!r}")
    return [float(x) for x in value]


def _box_list(value: Any) -> list[Box]:
    """Return boxes from one box, a list of boxes, or an empty list."""
    if not isinstance(value, list):
        raise FormError(f"'bbox' must be a list, got {value!r}")
    return [_box(item) for item in value] if all(isinstance(item, list) for item in value) else [_box(value)]


def _grounding(record: Mapping[str, Any]) -> Parts:
    boxes, text = _box_list(record["bbox"]), _text(record, "text")
    labels = record.get("label", text)
    labels = [labels] * len(boxes) if isinstance(labels, str) else labels
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise FormError(f"'label' must be a text or a list of texts, got {labels!r}")
    if len(labels) != len(boxes):
        raise FormError(f"{len(boxes)} boxes but {len(labels)} labels")
    return Parts(_text(record, "image"), text, boxes, labels)


def _question(record: Mapping[str, Any]) -> Parts:
    answers = record["answer"]
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise FormError(f"'answer' must be a text or a list of texts, none empty, got {record['answer']!r}")
    return Parts(_text(record, "image"), _text(record, "question"), answers=answers)


def _turns(value: Any, key: str, role: str, content: str, roles: tuple[str, str]) -> tuple[str, str]:
    """Return the texts of the one user turn and the one model turn; the image mark is removed."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise FormError(f"{key!r} must be a list of objects")
    for turn in value:
        _check_keys(turn, (role, content), ())
    if [turn[role] for turn in value] != list(roles):
        raise FormError(
            f"{key!r} must be one {roles[0]!r} and one {roles[1]!r} turn, got {[turn[role] for turn in value]}",
            hint="write one record a question; the system prompt is the model family's own",
        )
    user, model = value[0][content], value[1][content]
    if not isinstance(user, str) or not isinstance(model, str):
        raise FormError(f"{content!r} must be a text")
    if user.count(_IMAGE) > 1 or _IMAGE in model:
        raise FormError(f"a record has one image, so one {_IMAGE} in the user's turn at most")
    user = user.replace(_IMAGE, "").strip()
    if not user:
        raise FormError("the user's turn has no words")
    return user, model


def _conversation(record: Mapping[str, Any]) -> Parts:
    user, model = _turns(record["conversations"], "conversations", "from", "value", ("human", "gpt"))
    if not model.strip():
        raise FormError("the answer is empty")
    return Parts(_text(record, "image"), user, answers=[model])


def _messages(record: Mapping[str, Any]) -> Parts:
    images = record["images"]
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise FormError(f"'images' must be a list of one path, got {images!r}")
    user, model = _turns(record["messages"], "messages", "role", "content", ("user", "assistant"))
    if "objects" not in record:
        if not model.strip():
            raise FormError("the answer is empty")
        return Parts(images[0], user, answers=[model])
    return _objects(record["objects"], images[0], user, model)


def _objects(objects: Any, image: str, user: str, model: str) -> Parts:
    if not isinstance(objects, dict):
        raise FormError(f"'objects' must be an object, got {objects!r}")
    _check_keys(objects, ("ref", "bbox"), ())
    names = objects["ref"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise FormError(f"'objects.ref' must be a list of names, got {names!r}")
    if not isinstance(objects["bbox"], list):
        raise FormError(f"'objects.bbox' must be a list of boxes, got {objects['bbox']!r}")
    boxes = [_box(item) for item in objects["bbox"]]

    if _BOX in user:
        raise FormError(f"{_BOX} in the user's turn is not supported: boxes belong to the answer")
    # The answer is written by the codec; what the record says around the placeholders is only its own template.
    if re.search(r"\w", re.sub(rf"{_REF}|{_BOX}|bbox_2d|bbox|label|```json", "", model)):
        raise FormError(
            f"the answer of a record with 'objects' must be {_BOX} and {_REF} placeholders only, got {model!r}",
            hint="leave out 'objects' to train on the text as it is",
        )
    placed = model.count(_BOX)
    if placed not in (len(boxes), min(1, len(boxes))):
        raise FormError(f"{placed} {_BOX} in the answer but {len(boxes)} boxes in 'objects'")
    asked = user.count(_REF)
    answered = model.count(_REF)
    if asked + answered not in (0, len(names)):
        raise FormError(f"{asked + answered} {_REF} in the messages but {len(names)} names in 'objects'")
    for name in names[:asked]:
        user = user.replace(_REF, name, 1)
    labels = names[asked:] if answered == len(boxes) and boxes else names
    labels = labels * len(boxes) if len(labels) == 1 else labels
    if boxes and len(labels) != len(boxes):
        raise FormError(f"{len(boxes)} boxes but {len(labels)} names in 'objects.ref'")
    text = ", ".join(dict.fromkeys(names[:asked] or names))
    return Parts(image, text, boxes, labels if boxes else [], request=user)


# The key that tells a form, then its reader, required and optional keys.
_FORMS = {
    "bbox": (_grounding, ("image", "text", "bbox"), ("label",)),
    "text": (_grounding, ("image", "text", "bbox"), ("label",)),
    "question": (_question, ("image", "question", "answer"), ()),
    "answer": (_question, ("image", "question", "answer"), ()),
    "conversations": (_conversation, ("image", "conversations"), ("id",)),
    "messages": (_messages, ("messages", "images"), ("objects",)),
}
