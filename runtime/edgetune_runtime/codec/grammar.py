"""How families write boxes as text: five styles, each with a writer and a tolerant reader.

Coordinates here are numbers of the model frame, exactly as written; `edgetune_runtime.codec.grounding` gives
them a meaning. A reader takes what models really produce (code fences, prose around the boxes, line
breaks and tabs, single quotes, `bbox` for `bbox_2d`) and says what it could not read.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgetune_runtime.codec.box_format import BoxStyle

Numbers = tuple[float, float, float, float]


@dataclass
class Reading:
    """What a reader found: (numbers, label) pairs, whether the text ends in time, and its complaints."""

    boxes: list[tuple[Numbers, str]] = field(default_factory=list)
    complete: bool = True
    empty_list: bool = False
    problems: list[str] = field(default_factory=list)


# --- writers: boxes as already formatted numbers, one label each ---------------------------------------


Span = tuple[int, int]
"""Where something stands in a text: start and end (exclusive), in characters."""


def write(boxes: Sequence[Sequence[str]], labels: Sequence[str], style: BoxStyle) -> str:
    """Return the text for boxes ([N] x 4 formatted numbers) with their labels."""
    return lay_out(boxes, labels, style)[0]


def lay_out(boxes: Sequence[Sequence[str]], labels: Sequence[str], style: BoxStyle) -> tuple[str, list[list[Span]]]:
    """Return the text for boxes ([N] x 4 formatted numbers) with their labels, and where each number stands in it."""
    text, separator, closing = _LISTS.get(style, ("", "", ""))
    spans = []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        text += separator if index else ""
        *before, after = _around(label, style)
        places = []
        for words, number in zip(before, box, strict=True):
            start = len(text) + len(words)
            places.append((start, start + len(number)))
            text += words + number
        text += after
        spans.append(places)
    return text + closing, spans


def _around(label: str, style: BoxStyle) -> tuple[str, str, str, str, str]:
    """Return what stands before, between and after the four numbers of one box."""
    if style == "json":
        return ('{"bbox_2d": [', ", ", ", ", ", ", f'], "label": {json.dumps(label, ensure_ascii=False)}}}')
    if style == "plain":
        return ("[", ", ", ", ", ", ", "]")
    if style == "ref_box_list":
        return (f"<ref>{label}</ref><box>[[", ", ", ", ", ", ", "]]</box>")
    ref, box = _TAGS[style]
    return (f"{ref[0]}{label}{ref[1]}{box[0]}(", ",", "),(", ",", f"){box[1]}")


# What stands before, between and after all boxes; nothing in the styles with tags.
_LISTS: dict[BoxStyle, tuple[str, str, str]] = {"json": ("[", ", ", "]"), "plain": ("", ", ", "")}


def write_name(name: str, style: BoxStyle) -> str:
    """Return an object's name as it stands inside a sentence."""
    tags = _TAGS["ref_box"] if style == "ref_box_list" else _TAGS.get(style)
    return name if tags is None else f"{tags[0][0]}{name}{tags[0][1]}"


def tags(style: BoxStyle) -> tuple[str, ...]:
    """Return the tags of a style, which some tokenizers have as control tokens."""
    pairs = _TAGS.get("ref_box" if style == "ref_box_list" else style, ())
    return tuple(tag for pair in pairs for tag in pair)


def write_place(numbers: Sequence[str], style: BoxStyle) -> str:
    """Return a box (4 formatted numbers) or a point (2) as it stands inside a sentence."""
    if style in ("json", "plain"):
        return f"[{', '.join(numbers)}]"
    if style == "ref_box_list":
        return f"<box>[[{', '.join(numbers)}]]</box>"
    start, end = _TAGS[style][1]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return start + ",".join(f"({x},{y})" for x, y in pairs) + end


_TAGS: dict[BoxStyle, tuple[tuple[str, str], tuple[str, str]]] = {
    "ref_box": (("<ref>", "</ref>"), ("<box>", "</box>")),
    "special_ref_box": (("<|object_ref_start|>", "<|object_ref_end|>"), ("<|box_start|>", "<|box_end|>")),
}


# --- readers ----------------------------------------------------------------------------------------


def read(text: str, style: BoxStyle) -> Reading:
    """Return what the text holds in this style. Never raises: an unreadable text is a reading without boxes."""
    return _READERS[style](text)


def _numbers(value: Any) -> Numbers | None:
    """Return four finite numbers, or None when `value` is anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in value):
        return None
    try:
        x1, y1, x2, y2 = (float(item) for item in value)
    except OverflowError:
        return None
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None


def _spans(text: str, opening: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (start, span, closed) for each outermost bracketed value that starts like data, in order.

    A span that never closes runs to the end of the text; the spans that do close inside it follow, but
    not the lists of an object that was cut off: such an object is incomplete as a whole.
    """
    pattern = re.compile(rf"[{re.escape(opening)}](?=\s*(?:[\[{{\]}}\"'\d.-]|$))")
    position = 0
    while match := pattern.search(text, position):
        start = match.start()
        ends, parents = _match_brackets(text, start)
        closed = start in ends
        position = ends[start] if closed else len(text)
        yield start, text[start:position], closed
        if closed:
            continue
        inside = start
        for inner, end in sorted(ends.items()):
            parent = parents[inner]
            cut_object = parent is not None and parent not in ends and text[parent] == "{"
            if inner >= inside and text[inner] in opening and not cut_object:
                inside = end
                yield inner, text[inner:end], True


def _match_brackets(text: str, start: int) -> tuple[dict[int, int], dict[int, int | None]]:
    """Match the bracket at `start` and those in it, quotes respected.

    Returns:
        Where each closed bracket ends (exclusive), and the bracket that each one lies in, by position.
    """
    ends: dict[int, int] = {}
    parents: dict[int, int | None] = {}
    stack: list[int] = []
    quote, escaped = "", False
    for index in range(start, len(text)):
        character = text[index]
        if quote:
            if escaped or character == "\\":
                escaped = not escaped
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "[{":
            parents[index] = stack[-1] if stack else None
            stack.append(index)
        elif character in "]}":
            ends[stack.pop()] = index + 1
            if not stack:
                break
    return ends, parents


def _load(span: str) -> Any:
    """Return the value of a JSON text, or of a Python literal (single quotes); None when it is neither."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(span)
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ast.literal_eval(span)
    return None


def _read_json(text: str) -> Reading:
    reading = Reading()
    for _, span, closed in _spans(text, "[{"):
        if closed:
            _collect_span(span, reading)
        else:
            reading.complete = False
    return reading


def _collect_span(span: str, reading: Reading, label: str = "") -> None:
    value = _load(span)
    if value is None:
        reading.problems.append(f"not readable as a list or object: {_short(span)}")
        return
    try:
        _collect(value, reading, label)
    except RecursionError:
        reading.problems.append(f"nested too deeply: {_short(span)}")


def _collect(value: Any, reading: Reading, label: str = "") -> None:
    """Add every box in a decoded JSON value: objects with a box, lists of them, bare lists of four numbers."""
    if isinstance(value, dict):
        if isinstance(value.get("label"), str):
            label = value["label"]
        boxes = [value[key] for key in ("bbox_2d", "bbox") if key in value]
        if boxes:
            _collect(boxes[0], reading, label)
        elif not any(isinstance(item, list | dict) for item in value.values()):
            reading.problems.append(f"no bbox_2d in {_short(str(value))}")
        else:  # a wrapper such as {"objects": [...]}
            for item in value.values():
                if isinstance(item, list | dict):
                    _collect(item, reading, label)
    elif numbers := _numbers(value):
        reading.boxes.append((numbers, label))
    elif isinstance(value, list | tuple) and all(isinstance(item, dict | list | tuple) for item in value):
        reading.empty_list |= not value
        for item in value:
            _collect(item, reading, label)
    else:
        reading.problems.append(f"not four numbers: {_short(str(value))}")


_NUMBER = r"-?\d+(?:\.\d+)?"
_PAIR = rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
_CORNERS = re.compile(rf"{_PAIR}\s*,\s*{_PAIR}")
# One corner without the other, or an opened one, at the very end.
_CUT_CORNERS = re.compile(rf"(?:{_PAIR}\s*,?\s*)?\([\s\d.,-]*$|{_PAIR}\s*,?\s*$")


def _tags_complete(text: str, tags: tuple[tuple[str, str], tuple[str, str]]) -> bool:
    """Return whether every tag is closed, no tag is cut in the middle, and no reference waits for its box."""
    balanced = all(text.count(start) == text.count(end) for start, end in tags)
    return balanced and not re.search(r"<[^<>]*$", text) and not text.rstrip().endswith(tags[0][1])


def _read_pairs(text: str, style: Literal["ref_box", "special_ref_box"]) -> Reading:
    """Read `(x1,y1),(x2,y2)` boxes; tags may be missing, as decoders that skip special tokens leave them."""
    tags = _TAGS[style]
    (ref_start, ref_end), (box_start, box_end) = tags
    reading = Reading(empty_list=text == "[]")
    reference = re.compile(rf"{re.escape(ref_start)}(.*?){re.escape(ref_end)}", re.DOTALL)
    label, position = "", 0
    for match in _CORNERS.finditer(text):
        before = text[position : match.start()]
        if named := reference.findall(before):
            label = named[-1].strip()
        elif bare := before.replace(box_start, "").replace(box_end, "").strip(" \t\r\n,;:."):
            label = bare
        x1, y1, x2, y2 = (float(number) for number in match.groups())
        reading.boxes.append(((x1, y1, x2, y2), label))
        position = match.end()
    reading.complete = _tags_complete(text, tags) and not _CUT_CORNERS.search(text[position:])
    return reading


def _read_box_list(text: str) -> Reading:
    """Read `<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`; tags may be missing, which is LLaVA's style."""
    reading = Reading(complete=_tags_complete(text, _TAGS["ref_box"]) and not text.endswith(","))
    reference = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
    label, position = "", 0
    for start, span, closed in _spans(text, "["):
        if named := reference.findall(text[position:start]):
            label = named[-1].strip()
        if closed:
            _collect_span(span, reading, label)
            position = start + len(span)
        else:
            reading.complete = False
    return reading


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


_READERS: dict[BoxStyle, Callable[[str], Reading]] = {
    "json": _read_json,
    "plain": _read_box_list,
    "ref_box_list": _read_box_list,
    "ref_box": lambda text: _read_pairs(text, "ref_box"),
    "special_ref_box": lambda text: _read_pairs(text, "special_ref_box"),
}
