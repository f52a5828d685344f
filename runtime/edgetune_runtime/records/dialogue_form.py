"""Reading `messages` and `conversations`: turns with placeholders for pictures, names and boxes. No file is touched.

`<image>`, `<ref-object>` and `<bbox>` are three streams, each counted over all turns: the k-th `<bbox>` is
`objects.bbox[k]`, whatever the names do. Pictures without a placeholder stand before the first user turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from edgetune_runtime.records.checks import FormError, check_count, check_keys, numbers_of, text_of
from edgetune_runtime.records.dialogue import Name, Part, Picture, Place, Role, Turn

IMAGE, REF, BOX = "<image>", "<ref-object>", "<bbox>"
_MARKS = re.compile(f"({IMAGE}|{REF}|{BOX})")
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Conversation:
    """A decoded conversation: pictures as they are written in the file, and the turns."""

    images: tuple[str, ...]
    turns: tuple[Turn, ...]


def read_messages(record: Mapping[str, Any]) -> Conversation:
    """Return a `{"messages", "images", "objects"}` record's conversation.

    Raises:
        FormError: a value has the wrong type, turns are out of order, or placeholders and objects do not agree.
    """
    images = record.get("images", [])
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        raise FormError(f"'images' must be a list of paths, got {images!r}")
    said = _said(record["messages"], "messages", "role", "content")
    return Conversation(tuple(images), _place(said, len(images), record.get("objects")))


def read_conversation(record: Mapping[str, Any]) -> Conversation:
    """Return a `{"image", "conversations"}` record's conversation.

    Raises:
        FormError: as `read_messages`.
    """
    images = (text_of(record, "image"),) if "image" in record else ()
    said = _said(record["conversations"], "conversations", "from", "value")
    return Conversation(images, _place(said, len(images), None))


def _said(value: Any, key: str, role: str, content: str) -> list[tuple[Role, str, bool]]:
    """Return (role, text, learned) of each turn, in a legal order."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise FormError(f"{key!r} must be a list of objects, none empty")
    said = []
    for number, turn in enumerate(value):
        check_keys(turn, (role, content), ("loss",))
        speaker = _ROLES.get(turn[role]) if isinstance(turn[role], str) else None
        if speaker is None:
            raise FormError(f"{key}[{number}]: unknown {role} {turn[role]!r}", hint=f"one of {', '.join(_ROLES)}")
        if not isinstance(turn[content], str) or not turn[content].strip():
            raise FormError(f"{key}[{number}]: {content!r} must be a text that is not empty, got {turn[content]!r}")
        loss = turn.get("loss")
        if loss is not None and not isinstance(loss, bool):
            raise FormError(f"{key}[{number}]: 'loss' must be true or false, got {loss!r}")
        if loss and speaker != "assistant":
            raise FormError(f"{key}[{number}]: 'loss' is true on a {speaker} turn", hint="only answers are learned")
        said.append((speaker, turn[content], speaker == "assistant" and loss is not False))
    turns = [speaker for speaker, _, _ in said]
    body = turns[1:] if turns[0] == "system" else turns
    if not body or len(body) % 2 or body != ["user", "assistant"] * (len(body) // 2):
        raise FormError(
            f"{key!r} must go user, assistant, user, assistant after at most one system turn, got {', '.join(turns)}"
        )
    if not any(learned for _, _, learned in said):
        raise FormError("no turn is learned: 'loss' is false on every answer")
    return said


def _place(said: Sequence[tuple[Role, str, bool]], images: int, objects: Any) -> tuple[Turn, ...]:
    """Return the turns with their placeholders resolved."""
    names, places = _objects(objects, images)
    text = "".join(content for _, content, _ in said)
    if text.count(IMAGE) > images:
        raise FormError(f"{text.count(IMAGE)} {IMAGE} in the turns but {images} images")
    if any(IMAGE in content for role, content, _ in said if role != "user"):
        raise FormError(f"{IMAGE} outside the user's turns", hint="pictures belong to what the user says")
    if objects is not None:
        for mark, values, key in ((BOX, places, "bbox"), (REF, names, "ref")):
            if text.count(mark) not in (len(values), 0 if mark == REF else len(values)):
                raise FormError(f"{text.count(mark)} {mark} in the turns but {len(values)} in 'objects.{key}'")
    elif REF in text or BOX in text:
        raise FormError(f"{REF if REF in text else BOX} in the turns but no 'objects'")
    unmarked = images - text.count(IMAGE)
    streams: dict[str, Any] = {
        IMAGE: iter([Picture(index) for index in range(unmarked, images)]),
        REF: iter([Name(name) for name in names]),
        BOX: iter(places),
    }
    turns = []
    for role, content, learned in said:
        parts: list[Part] = [next(streams[piece]) if piece in streams else piece for piece in _pieces(content)]
        if role == "user" and unmarked:
            parts = [*(Picture(index) for index in range(unmarked)), *parts]
            unmarked = 0
        turns.append(Turn(role, _close_up(parts), learned))
    return tuple(turns)


def _close_up(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Drop white space after a picture: what stands between it and the words is the family's own."""
    closed: list[Part] = []
    for part in parts:
        kept = part.lstrip() if isinstance(part, str) and closed and isinstance(closed[-1], Picture) else part
        if kept:
            closed.append(kept)
    return tuple(closed)


def _pieces(content: str) -> list[str]:
    return [piece for piece in _MARKS.split(content) if piece]


def _objects(objects: Any, images: int) -> tuple[list[str], list[Place]]:
    if objects is None:
        return [], []
    if not isinstance(objects, dict):
        raise FormError(f"'objects' must be an object, got {objects!r}")
    check_keys(objects, ("bbox",), ("ref", "image_id"))
    names = objects.get("ref", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise FormError(f"'objects.ref' must be a list of names, got {names!r}")
    if not isinstance(objects["bbox"], list):
        raise FormError(f"'objects.bbox' must be a list of boxes, got {objects['bbox']!r}")
    check_count(objects["bbox"])
    boxes = [numbers_of(item) for item in objects["bbox"]]
    owners = objects.get("image_id", [0] * len(boxes))
    if not isinstance(owners, list) or not all(type(owner) is int for owner in owners):
        raise FormError(f"'objects.image_id' must be a list of whole numbers, got {owners!r}")
    if len(owners) != len(boxes):
        raise FormError(f"{len(owners)} in 'objects.image_id' but {len(boxes)} in 'objects.bbox'")
    for box, owner in zip(boxes, owners, strict=True):
        if not 0 <= owner < images:
            raise FormError(f"bbox {box} lies on image {owner}, counted from 0, but there are {images} images")
    return cast("list[str]", names), [Place(tuple(box), owner) for box, owner in zip(boxes, owners, strict=True)]
