"""The messages of an ms-swift record: names of roles, content in blocks, what is learned, where pictures stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgetune_runtime.records.forms import FormError

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "bot")
_INLINE = re.compile(r"<img>(.+?)</img>")
_OTHER_MARKS = re.compile(r"<(?:video|audio|start-image|cot-process)>")
IMAGE = "<image>"


@dataclass(frozen=True)
class Said:
    """Canonical messages, the pictures as the record gives them, and whether marks were added for some of them."""

    messages: list[dict[str, Any]]
    images: list[Any]
    marks_added: bool


def read_turns(turns: Any, *, system: Any, images: Sequence[Any]) -> Said:
    """Return the messages of a record.

    Args:
        turns: a list of messages with role and content (or from and value), or of pairs such as human and assistant.
        system: the record's own system prompt, or None.
        images: the record's pictures.

    Raises:
        FormError: something has the wrong type, or would be ignored by the tool that this format belongs to.
    """
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise FormError("the messages must be a list of objects, none empty")
    found: list[Any] = []
    messages = [_message(turn, found) for turn in _single(turns)]
    if system is not None and messages[0]["role"] == "system":
        raise FormError("a system prompt beside the messages and another one in them", hint="keep one of them")
    if system is not None:
        messages.insert(0, {"role": "system", "content": _text(system)})
    for before, after in pairwise(messages):
        if before["role"] == after["role"]:
            raise FormError(f"two {after['role']} messages in a row", hint="join them into one")
    if not images and not found:
        found = _inline(messages)
    if images and found:
        raise FormError("pictures in the messages and in 'images'", hint="keep one of them")
    pictures = [*images, *found]
    return Said(messages, pictures, _mark(messages, len(pictures)))


def _single(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one message each, from pairs where the list is of pairs."""
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    if {"role", "content", "from", "value"} & set(turns[0]):
        return list(turns)
    messages: list[Mapping[str, Any]] = []
    for pair in turns:
        asked = [key for key in pair if key in _USER]
        answered = [key for key in pair if key in _ASSISTANT]
        if len(asked) != 1 or len(answered) != 1 or len(pair) != 2:
            raise FormError(f"a message has role and content, or one of {_USER} and {_ASSISTANT}, got {sorted(pair)}")
        messages += [{"role": "user", "content": pair[asked[0]]}, {"role": "assistant", "content": pair[answered[0]]}]
    return messages


def _message(turn: Mapping[str, Any], found: list[Any]) -> dict[str, Any]:
    role_key = "role" if "role" in turn else "from"
    content_key = "content" if "content" in turn else "value"
    if role_key not in turn or content_key not in turn:
        raise FormError(f"a message has role and content (or from and value), got {sorted(turn)}")
    extra = set(turn) - {role_key, content_key, "loss", "loss_scale"}
    if extra:
        raise FormError(
            f"unknown key {min(extra)!r} in a message", hint="a message has role, content, loss, loss_scale"
        )
    role = _ROLES.get(str(turn[role_key]))
    if role is None:
        raise FormError(f"role {turn[role_key]!r} is not supported", hint=f"one of {', '.join(_ROLES)}")
    message: dict[str, Any] = {"role": role, "content": _content(turn[content_key], found)}
    learned = _learned(turn, role)
    if learned is not None:
        message["loss"] = learned
    return message


def _learned(turn: Mapping[str, Any], role: str) -> bool | None:
    """Return whether a message is learned, or None where it does not say."""
    loss, scale = turn.get("loss"), turn.get("loss_scale")
    if loss is not None and not isinstance(loss, bool):
        raise FormError(f"'loss' must be true or false, got {loss!r}")
    if scale is not None and scale not in (0, 1):
        raise FormError(f"'loss_scale' {scale!r} is not supported", hint="0 leaves a message out, 1 learns it")
    said = loss if loss is not None else (None if scale is None else bool(scale))
    if loss and scale == 0:
        raise FormError("'loss' is true but 'loss_scale' is 0", hint="leave one of them out")
    if role == "assistant":
        return said
    if said:
        raise FormError(f"'loss' on a {role} message", hint="only answers are learned")
    return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FormError(f"a message's content must be a text, got {value!r}")
    mark = _OTHER_MARKS.search(value)
    if mark:
        raise FormError(f"{mark[0]} is not supported", hint="edgetune trains on pictures, text and boxes")
    return value


def _content(value: Any, found: list[Any]) -> str:
    """Return a message's text; pictures in its blocks become marks and join `found`."""
    if not isinstance(value, list):
        return _text(value)
    texts = []
    for block in value:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(_text(block["text"]))
        elif kind in ("image", "image_url"):
            texts.append(IMAGE)
            found += _picture(block, kind)
        else:
            raise FormError(f"content block {block!r} is not supported", hint="a block is a text, image or image_url")
    return "".join(texts)


def _picture(block: Mapping[str, Any], kind: str) -> list[Any]:
    """Return the picture of a block as a list, empty where it only marks the place of one in 'images'."""
    source = block.get("source")
    if isinstance(source, dict):
        if source.get("type") == "base64":
            return [f"data:{source.get('media_type') or ''};base64,{source.get('data') or ''}"]
        return [source.get("url")]
    value = block.get(kind)
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    return [value] if value else []


def _inline(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Take pictures from <img>path</img> in the texts, an older way to write them."""
    found: list[str] = []
    for message in messages:
        found += _INLINE.findall(message["content"])
        message["content"] = _INLINE.sub(IMAGE, message["content"])
    return found


def _mark(messages: Sequence[dict[str, Any]], images: int) -> bool:
    """Put marks before the first message for pictures that have none; return whether there were such."""
    marks = sum(message["content"].count(IMAGE) for message in messages)
    if marks > images:
        raise FormError(f"{marks} {IMAGE} in the messages but {images} images")
    if marks == images:
        return False
    first = messages[1] if messages[0]["role"] == "system" and len(messages) > 1 else messages[0]
    first["content"] = IMAGE * (images - marks) + first["content"]
    return True
