"""The JSON forms of a record, reduced to common parts. No file is touched here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune_runtime.records.checks import FormError, box_of, check_count, check_keys, text_of
from edgetune_runtime.records.dialogue import Name, Picture, Place, Turn
from edgetune_runtime.records.dialogue_form import Conversation, read_conversation, read_messages

__all__ = ["Conversation", "FormError", "Parts", "read_form"]


CAPTION_REQUEST = "Describe this image."
"""What a caption, a picture with a text and no box, is the answer to."""


@dataclass
class Parts:
    """What the forms of one question boil down to; see `edgetune_runtime.records.Record` for the fields."""

    image: str
    text: str
    boxes: list[list[float]] | None = None
    labels: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    request: str | None = None


def read_form(record: Mapping[str, Any]) -> Parts | Conversation:
    """Return the parts of a decoded record; a conversation that is one question comes as one.

    Raises:
        FormError: no form has these keys, or a value has the wrong type.
    """
    for key, (read, required, optional) in _FORMS.items():
        if key in record:
            check_keys(record, required, (*optional, "id", "meta", "source"))
            if not isinstance(record.get("id", ""), str | int) or isinstance(record.get("id"), bool):
                raise FormError(f"'id' must be a text or a whole number, got {record['id']!r}")
            if not isinstance(record.get("meta", {}), dict):
                raise FormError(f"'meta' must be an object, got {record['meta']!r}")
            if "source" in record:
                text_of(record, "source")
            return read(record)
    raise FormError(
        f"unknown form: keys {', '.join(map(repr, record)) or '(none)'}",
        hint='a record has "image" with "text" and "bbox" (or "text" alone, a caption), "question" and "answer", or '
        '"conversations"; or "messages" with "images"',
    )


def _grounding(record: Mapping[str, Any]) -> Parts:
    boxes, text = _box_list(record["bbox"]), text_of(record, "text")
    labels = record.get("label", text)
    labels = [labels] * len(boxes) if isinstance(labels, str) else labels
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise FormError(f"'label' must be a text or a list of texts, got {labels!r}")
    if len(labels) != len(boxes):
        raise FormError(f"{len(boxes)} boxes but {len(labels)} labels")
    return Parts(text_of(record, "image"), text, boxes, labels)


def _box_list(value: Any) -> list[list[float]]:
    """Return boxes from one box, a list of boxes, or an empty list."""
    if not isinstance(value, list):
        raise FormError(f"'bbox' must be a list, got {value!r}")
    check_count(value)
    return [box_of(item) for item in value] if all(isinstance(item, list) for item in value) else [box_of(value)]


def _question(record: Mapping[str, Any]) -> Parts:
    answers = record["answer"]
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise FormError(f"'answer' must be a text or a list of texts, none empty, got {record['answer']!r}")
    return Parts(text_of(record, "image"), text_of(record, "question"), answers=answers)


def _caption(record: Mapping[str, Any]) -> Parts:
    return Parts(text_of(record, "image"), CAPTION_REQUEST, answers=[text_of(record, "text")])


def _conversation(record: Mapping[str, Any]) -> Parts | Conversation:
    conversation = read_conversation(record)
    return _one_question(conversation, None) or conversation


def _messages(record: Mapping[str, Any]) -> Parts | Conversation:
    conversation = read_messages(record)
    return _one_question(conversation, record.get("objects")) or conversation


def _one_question(conversation: Conversation, objects: Mapping[str, Any] | None) -> Parts | None:
    """Return the parts of a single question about a single picture that comes first, or None for anything else."""
    if len(conversation.images) != 1 or [turn.role for turn in conversation.turns] != ["user", "assistant"]:
        return None
    user, model = conversation.turns
    if not isinstance(user.parts[0], Picture) or any(isinstance(part, Place) for part in user.parts):
        return None
    asked = "".join(part.text if isinstance(part, Name) else str(part) for part in user.parts[1:]).strip()
    if not asked:
        raise FormError("the user's turn has no words")
    if objects is None:
        return Parts(conversation.images[0], asked, answers=["".join(map(str, model.parts))])
    boxes = [list(part.numbers) for part in model.parts if isinstance(part, Place)]
    if not _only_placeholders(model) or any(len(box) != 4 for box in boxes):
        return None
    named = [part.text for part in user.parts if isinstance(part, Name)]
    labels = [part.text for part in model.parts if isinstance(part, Name)] or named or objects.get("ref", [])
    if boxes and not labels:
        return None
    if boxes and len(labels) not in (1, len(boxes)):
        raise FormError(f"{len(boxes)} boxes but {len(labels)} names in 'objects.ref'")
    text = ", ".join(dict.fromkeys(named or objects.get("ref", []))) or asked
    labels = (labels if len(labels) == len(boxes) else labels * len(boxes)) if boxes else []
    return Parts(conversation.images[0], text, boxes, labels, request=asked)


def _only_placeholders(turn: Turn) -> bool:
    """Whether an answer is boxes, names and their own template: then the codec writes it, as it does every answer."""
    words = " ".join(part for part in turn.parts if isinstance(part, str))
    return not re.search(r"\w", re.sub(r"bbox_2d|bbox|label|```json", "", words))


# The key that tells a form, then its reader, required and optional keys.
_Reader = Callable[[Mapping[str, Any]], Parts | Conversation]
_FORMS: Mapping[str, tuple[_Reader, tuple[str, ...], tuple[str, ...]]] = {
    "bbox": (_grounding, ("image", "text", "bbox"), ("label",)),
    "label": (_grounding, ("image", "text", "bbox"), ("label",)),
    "text": (_caption, ("image", "text"), ()),
    "question": (_question, ("image", "question", "answer"), ()),
    "answer": (_question, ("image", "question", "answer"), ()),
    "conversations": (_conversation, ("conversations",), ("image",)),
    "messages": (_messages, ("messages",), ("images", "objects")),
}
