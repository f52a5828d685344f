"""How models write boxes as text: five styles, each with a writer and a tolerant reader.

Coordinates here are numbers of the model frame, exactly as written; `edgetune_runtime.codec.grounding` gives
them a meaning. A reader takes what models really produce (code fences, prose around the boxes, line
breaks and tabs, single quotes, `bbox` for `bbox_2d`) and says what it could not read.

Numbers count as a box where the text says so: by a key that names a box, by tags, or by standing on a line of their
own. Four numbers in brackets in the middle of a sentence, or under some other key, are not taken for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgetune_runtime.codec.box_format import BoxFormat, BoxStyle
from edgetune_runtime.codec.loose_json import Node, Number, coordinate, read_nodes

Numbers = tuple[float, float, float, float]


Span = tuple[int, int]
"""Where something stands in a text: start and end (exclusive), in characters."""


class Box(NamedTuple):
    """A box as it was read: x1, y1, x2, y2 in the model frame, its label, and where its numbers stand in the text."""

    numbers: Numbers
    label: str
    spans: tuple[Span, ...]


@dataclass
class Reading:
    """What a reader found.

    Attributes:
        boxes: in the order of the text.
        complete: the text does not break off.
        empty_list: there is a list without anything in it.
        problems: what could not be read.
    """

    boxes: list[Box] = field(default_factory=list)
    complete: bool = True
    empty_list: bool = False
    problems: list[str] = field(default_factory=list)


# --- writers: boxes as already formatted numbers, one label each ---------------------------------------


def write(boxes: Sequence[Sequence[str]], labels: Sequence[str], style: BoxStyle) -> str:
    """Return the text for boxes ([N] x 4 formatted numbers) with their labels."""
    return lay_out(boxes, labels, style)[0]


def lay_out(boxes: Sequence[Sequence[str]], labels: Sequence[str], style: BoxStyle) -> tuple[str, list[list[Span]]]:
    """Return the text for boxes ([N] x 4 formatted numbers) with their labels, and where each number stands in it."""
    return lay_out_fenced(boxes, labels, style, fences(style)[0])[:2]


def lay_out_fenced(
    boxes: Sequence[Sequence[str]], labels: Sequence[str], style: BoxStyle, fence: tuple[str, str, str]
) -> tuple[str, list[list[Span]], list[Span]]:
    """Return what `lay_out` does, between other fences, and where each label stands; a style may have no labels."""
    text, separator, closing = fence
    spans, names = [], []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        text += separator if index else ""
        *before, after = _around(label, style)
        places = []
        for words, number in zip(before, box, strict=True):
            start = len(text) + len(words)
            places.append((start, start + len(number)))
            text += words + number
        written = json.dumps(label, ensure_ascii=False)[1:-1] if style == "json" else label
        named = after if style == "json" else before[0]
        if style != "plain":
            start = len(text) if style == "json" else places[0][0] - len(named)
            start += named.index(written, named.index('": ') if style == "json" else 0)
            names.append((start, start + len(written)))
        text += after
        spans.append(places)
    return text + closing, spans, names


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


_JSON_NAME = re.compile(r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*(?:\\(?:u[0-9a-fA-F]{0,3})?)?')
_TAGGED_NAME = re.compile(r"[^<>\n]*")


def label_pattern(style: BoxStyle) -> re.Pattern[str]:
    """Return what the text of an object's name, or the beginning of one, matches as a whole."""
    return _JSON_NAME if style == "json" else _TAGGED_NAME


def fences(style: BoxStyle) -> tuple[tuple[str, str, str], ...]:
    """Return what stands before, between and after all boxes: as `write` has it, and as published models do.

    Qwen-VL's own answers are in a code fence, with a box a line.
    """
    own = _LISTS.get(style, ("", "", ""))
    return (own, ("```json\n[\n\t", ",\n\t", "\n]\n```")) if style == "json" else (own,)


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


def read(text: str, box_format: BoxFormat) -> Reading:
    """Return the boxes in a text. Never raises: an unreadable text is a reading without boxes."""
    if box_format.style in ("ref_box", "special_ref_box"):
        return _read_pairs(text, _TAGS[box_format.style])
    data = _Data(text, box_format)
    if box_format.style == "json":
        data.read_json()
    else:
        data.read_lists(tagged=box_format.style == "ref_box_list")
    return data.reading


# Names of boxes, with the order of their numbers; the first that an object has is its box.
_BOX_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("bbox_2d", "bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes"), "x1 y1 x2 y2"),
    **dict.fromkeys(("xyxy", "bbox_xyxy", "box_xyxy"), "x1 y1 x2 y2"),
    **dict.fromkeys(("xywh", "bbox_xywh", "box_xywh"), "x y w h"),
    **dict.fromkeys(("cxcywh", "bbox_cxcywh", "box_cxcywh"), "cx cy w h"),
    **dict.fromkeys(("yxyx", "bbox_yxyx", "box_yxyx"), "y1 x1 y2 x2"),
    "box_2d": "y1 x1 y2 x2",  # Gemini's, which counts 0-1000
}
# Names of the four numbers where each has its own.
_CORNER_KEYS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
)
_LABEL_KEYS = ("label", "name", "text_content", "category")
_TAG = re.compile(r"<[^<>]*>")


def _corners(numbers: Sequence[float], order: str) -> Numbers:
    """Return x1, y1, x2, y2 of four numbers in this order."""
    first, second, third, fourth = numbers
    if order == "y1 x1 y2 x2":
        return second, first, fourth, third
    if order == "x y w h":
        return first, second, first + third, second + fourth
    if order == "cx cy w h":
        return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    return first, second, third, fourth


class _Data:
    """Collects the boxes in the lists and objects of a text."""

    def __init__(self, text: str, box_format: BoxFormat) -> None:
        self.reading = Reading()
        self._text = text
        self._frame = box_format.frame

    def read_json(self) -> None:
        """Read objects with a box wherever they stand, and bare lists that stand on their own."""
        nodes = list(read_nodes(self._text, "[{"))
        for node, before, after in zip(nodes, [None, *nodes], [*nodes[1:], None], strict=False):
            self.reading.complete &= node.end >= 0
            if node.holds_objects or not (node.items or node.children) or self._alone(node, before, after):
                self._collect(node, "", bare=True)

    def read_lists(self, *, tagged: bool) -> None:
        """Read `[x1, y1, x2, y2]`, and with tags `<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`.

        The tags may be missing, as decoders that skip special tokens leave them: then two brackets mean a box.
        """
        text, reading = self._text, self.reading
        reading.complete = _tags_complete(text, _TAGS["ref_box"]) and not text.rstrip().endswith(",")
        label, position = "", 0
        nodes = list(read_nodes(text, "["))
        for node, before, after in zip(nodes, [None, *nodes], [*nodes[1:], None], strict=False):
            gap = text[position : node.start]
            label = _last_name(gap, _TAGS["ref_box"][0]) or label
            reading.complete &= node.end >= 0
            meant = node.children or not node.items or gap.rstrip().endswith("<box>")
            if not tagged or meant or self._alone(node, before, after):
                self._collect(node, label, bare=True)
            position = max(node.end, position)

    def _alone(self, node: Node, before: Node | None, after: Node | None) -> bool:
        """Whether there are no words beside a node on its lines, but other data and tags."""
        head = self._text[before.end if before else 0 : node.start]
        tail = self._text[node.end : after.start if after else None] if node.end >= 0 else ""
        beside = _TAG.sub("", head).rpartition("\n")[2] + _TAG.sub("", tail).partition("\n")[0]
        return not beside.strip(" \t\r,;.")

    def _collect(self, node: Node, label: str, *, bare: bool) -> None:
        """Add the boxes in a list or object.

        Args:
            node: of the text.
            label: what its boxes are called where they have no name of their own.
            bare: whether lists of four numbers are boxes.
        """
        if node.bracket == "{":
            self._collect_object(node, label)
        elif bare and (numbers := node.numbers()) and len(numbers) == 4 and node.end >= 0:
            self._add(numbers, "x1 y1 x2 y2", label)
        else:
            if not node.items and not node.spoilt and node.end >= 0:
                self.reading.empty_list = True
            elif node.end >= 0 and (node.spoilt or not all(isinstance(item, Node) for item in node.items)):
                self._refuse("not readable:" if node.spoilt else "not four numbers:", node)
            for _, child in node.children:
                if child.end >= 0 or node.end < 0:
                    self._collect(child, label, bare=bare)

    def _collect_object(self, node: Node, label: str) -> None:
        values = {_plain(key): value for key, value in node.fields.items()}
        label = next((values[key] for key in _LABEL_KEYS if isinstance(values.get(key), str)), label)
        if node.spoilt or node.end < 0:  # what it would have said of a box is not known; objects in it are whole
            if node.end >= 0:
                self._refuse("not readable:", node)
            inner = [child for key, child in node.children if child.holds_objects and _plain(key) not in _BOX_KEYS]
        elif key := next((key for key in _BOX_KEYS if key in values), None):
            self._collect_boxes(values[key], key, label, node)
            return
        elif self._collect_corners(values, label):
            return
        else:  # a wrapper such as {"objects": [...]}
            inner = [value for value in values.values() if isinstance(value, Node) and value.holds_objects]
            if not inner:
                self._refuse("no bbox_2d in", node)
        for child in inner:
            self._collect(child, label, bare=False)

    def _collect_boxes(self, value: Any, key: str, label: str, node: Node) -> None:
        """Add what stands under a key that names a box: four numbers, several times four, or corners by their names."""
        if not isinstance(value, Node):
            self._refuse("not four numbers:", node)
        elif value.bracket == "{":
            self._collect_object(value, label)
        elif (numbers := value.numbers()) and len(numbers) == 4:
            if key == "box_2d" and self._frame != "norm1000":
                self._refuse("box_2d counts 0-1000, which is not this model's frame:", node)
            else:
                self._add(numbers, _BOX_KEYS[key], label)
        elif value.items and not value.spoilt and all(isinstance(item, Node) for item in value.items):
            for item in value.items:
                self._collect_boxes(item, key, label, item)
        elif not value.items and not value.spoilt:
            self.reading.empty_list = True
        else:
            self._refuse("not readable:" if value.spoilt else "not four numbers:", value)

    def _collect_corners(self, values: Mapping[str, Any], label: str) -> bool:
        """Add a box whose four numbers have a name each; return whether there is one."""
        for names in _CORNER_KEYS:
            numbers = [value for name in names if isinstance(value := values.get(name), Number)]
            if len(numbers) == len(names):
                self._add(numbers, "x y w h" if names[0] == "x" else "x1 y1 x2 y2", label)
                return True
        return False

    def _add(self, numbers: Sequence[Number], order: str, label: str) -> None:
        corners = _corners([number.value for number in numbers], order)
        spans = tuple((number.start, number.end) for number in numbers)
        self.reading.boxes.append(Box(corners, label, spans))

    def _refuse(self, what: str, node: Node) -> None:
        self.reading.problems.append(f"{what} {_excerpt(self._text, node.start, node.end)}")


def _plain(key: str) -> str:
    return key.strip().casefold().replace(" ", "_").replace("-", "_")


_DIGITS = r"-?\d+(?:\.\d+)?"
_PAIR = rf"\(\s*{_DIGITS}\s*,\s*{_DIGITS}\s*\)"
_PAIRS = re.compile(rf"{_PAIR}(?:\s*,\s*{_PAIR})*")
# One corner without the other, or an opened one, at the very end.
_CUT_CORNER = re.compile(r"\([\s\d.,-]*\Z")

Tags = tuple[tuple[str, str], tuple[str, str]]


def _read_pairs(text: str, tags: Tags) -> Reading:
    """Read `(x1,y1),(x2,y2)` boxes; tags may be missing, as decoders that skip special tokens leave them."""
    reading = Reading(empty_list=text.strip() == "[]")
    label, position, points = "", 0, 0
    for match in _PAIRS.finditer(text):
        before = text[position : match.start()]
        if named := _last_name(before, tags[0]):
            label = named
        elif bare := before.replace(tags[1][0], "").replace(tags[1][1], "").strip(" \t\r\n,;:."):
            label = bare
        position = match.end()
        found = list(re.finditer(_DIGITS, match[0]))
        numbers = [coordinate(number[0]) for number in found]
        points = len(found) // 2
        if points == 2 and None in numbers:
            reading.problems.append(f"not four numbers: {_excerpt(text, match.start(), match.end())}")
        elif points == 2:
            start = match.start()
            spans = tuple((start + number.start(), start + number.end()) for number in found)
            x1, y1, x2, y2 = (float(number or 0) for number in numbers)
            reading.boxes.append(Box((x1, y1, x2, y2), label, spans))
        elif points > 1:
            reading.problems.append(f"not the two corners of a box: {_excerpt(text, match.start(), match.end())}")
    half = points == 1 and not text[position:].strip(" \t\r\n,")
    reading.complete = _tags_complete(text, tags) and not half and not _CUT_CORNER.search(text, position)
    return reading


def _last_name(text: str, tags: tuple[str, str]) -> str:
    """Return what stands between the last pair of tags around a name, or ""."""
    head, found, _ = text.rpartition(tags[1])
    _, opened, name = head.rpartition(tags[0])
    return name.strip() if found and opened else ""


def _tags_complete(text: str, tags: Tags) -> bool:
    """Return whether every tag is closed, no tag is cut in the middle, and no reference waits for its box."""
    balanced = all(text.count(start) == text.count(end) for start, end in tags)
    return balanced and not re.search(r"<[^<>]*\Z", text) and not text.rstrip().endswith(tags[0][1])


def _excerpt(text: str, start: int, end: int, limit: int = 60) -> str:
    """Return a part of a text as one short line."""
    part = text[start : end if end >= 0 else None][: 4 * limit]
    line = " ".join(part.split()).encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= limit else line[: limit - 1] + "…"
