"""Lists and objects in the text of an answer, as models write them: JSON, Python's literals, and both with mistakes.

A reader of JSON gives up at the first mistake. Here a mistake spoils the list or object that it is in and no other:
what stands around it is read on. One pass over the text, so that a long answer takes time in proportion to its length,
and no recursion, so that brackets may be nested as deeply as a text can be long.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_OPENING, _CLOSING = "[{(", "]})"
# A bracket of prose, such as "[see below]", does not start like data.
_STARTS = {opening: re.compile(rf"[{re.escape(opening)}](?=\s*(?:[\[{{\]}}\"'\d.-]|\Z))") for opening in ("[", "[{")}
_TOKEN = re.compile(r"""\s*([\[{(\]}),:"']|[^\s\[\]{}(),:"']+)""")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = frozenset(["true", "false", "null", "True", "False", "None", "NaN", "Infinity", "-Infinity", "nan", "inf"])
# A quote ends its text where data goes on after it, or where no other quote comes before the next bracket: so an
# apostrophe, or a name in quotes, may stand in a label without a backslash.
_ENDS_TEXT = re.compile(r"\s*(?:[,:\]})]|\Z)")
_QUOTES = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in "\"'"}
_NEXT_QUOTE = {quote: re.compile(rf"[^{quote}\[\]{{}}]*{quote}") for quote in "\"'"}
_DECODER = json.JSONDecoder(strict=False)
_ESCAPE_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_IN_JSON = {'"': r"\"", r"\'": "'"}

_LONGEST_NUMBER = 40  # characters; what is longer is no coordinate
_LARGEST_NUMBER = 1e12  # nor is what is larger
_MOST_LEVELS = 64


class Number(NamedTuple):
    """A finite number, and where it stands in the text: start and end (exclusive), in characters."""

    value: float
    start: int
    end: int


@dataclass(slots=True)
class Node:
    """A list (or tuple) or an object in a text.

    Attributes:
        bracket: "[", "(" or "{".
        start: where it stands in the text, in characters.
        end: the place after its last bracket; -1 where the text breaks off inside of it.
        items: of a list, its values: `Number`, `str`, `Node`, or None for anything else.
        fields: of an object, its values by their keys; the last one counts where a key comes twice.
        children: the lists and objects directly in it, those of spoilt entries too, each with the key before it or "".
        spoilt: something in it is not data; that in its children does not count.
        holds_objects: it is an object, or one lies somewhere in it.
    """

    bracket: str
    start: int
    end: int = -1
    items: list[Any] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    children: list[tuple[str, Node]] = field(default_factory=list)
    spoilt: bool = False
    holds_objects: bool = False
    _entry: list[Any] = field(default_factory=list)  # what was read since the last comma

    def numbers(self) -> tuple[Number, ...] | None:
        """Return the items of a list that holds numbers and nothing else, at least one."""
        if self.spoilt or not self.items or not all(isinstance(item, Number) for item in self.items):
            return None
        return tuple(self.items)


def read_nodes(text: str, opening: str) -> Iterator[Node]:
    """Yield the outermost lists and objects in a text, in order.

    Args:
        text: anything.
        opening: "[" for lists alone, "[{" for objects too.
    """
    position = 0
    while start := _STARTS[opening].search(text, position):
        node, position = _read_node(text, start.start())
        yield node


_COLON, _JUNK = object(), object()


def _read_node(text: str, start: int) -> tuple[Node, int]:
    """Return the node whose bracket is at `start`, and where the text goes on after it."""
    root = Node(text[start], start, holds_objects=text[start] == "{")
    stack, open_brackets = [root], {"[": 0, "{": 0, "(": 0, text[start]: 1}
    position = start + 1
    while stack and (match := _TOKEN.match(text, position)):
        token, at, position = match[1], match.start(1), match.end()
        top = stack[-1]
        if token in _OPENING:
            if len(stack) == _MOST_LEVELS:
                top.spoilt = True
                continue
            child = Node(token, at)
            top.children.append((_key(top), child))
            top._entry.append(child)
            stack.append(child)
            open_brackets[token] += 1
            if token == "{":
                for node in reversed(stack):
                    if node.holds_objects:
                        break
                    node.holds_objects = True
        elif token in _CLOSING:
            opening = _OPENING[_CLOSING.index(token)]
            if not open_brackets[opening]:
                top.spoilt = True
                continue
            while stack[-1].bracket != opening:  # a bracket that was never closed
                open_brackets[stack[-1].bracket] -= 1
                left_open = stack.pop()
                left_open.spoilt, left_open.end = True, at
            _end_entry(stack[-1], last=True)
            open_brackets[opening] -= 1
            stack.pop().end = position
        elif token == ",":
            _end_entry(top, last=False)
        elif token == ":":
            top._entry.append(_COLON)
        elif token in _QUOTES:
            if top._entry and not isinstance(top._entry[-1], str | Node) and top._entry[-1] is not _COLON:
                top._entry.append(_JUNK)
                continue
            end = _end_of_text(text, at)
            if end is None:
                return root, len(text)
            top._entry.append(_unquoted(text[at:end]))
            position = end
        else:
            top._entry.append(_atom(token, at))
    return root, len(text) if stack else position


def _key(node: Node) -> str:
    """Return the key that the next value of an object belongs to, or ""."""
    entry = node._entry
    return entry[0] if node.bracket == "{" and len(entry) == 2 and isinstance(entry[0], str) else ""


def _end_entry(node: Node, *, last: bool) -> None:
    """Take what was read since the last comma as an entry, or note that it is none."""
    entry, node._entry = node._entry, []
    if not entry:
        node.spoilt |= not last  # a comma too many; one at the end is allowed
    elif node.bracket == "{" and len(entry) == 3 and isinstance(entry[0], str) and entry[1] is _COLON:
        node.fields[entry[0]] = entry[2]
        node.spoilt |= entry[2] is _COLON or entry[2] is _JUNK
    elif node.bracket != "{" and len(entry) == 1:
        node.items.append(entry[0])
        node.spoilt |= entry[0] is _COLON or entry[0] is _JUNK
    else:
        node.spoilt = True


def _end_of_text(text: str, start: int) -> int | None:
    """Return the place after the quote that ends the text in quotes at `start`, or None where there is none."""
    quote = text[start]
    for match in _QUOTES[quote].finditer(text, start + 1):
        end = match.end()
        if match[0] == quote and (_ENDS_TEXT.match(text, end) or not _NEXT_QUOTE[quote].match(text, end)):
            return end
    return None


def _unquoted(token: str) -> str:
    """Return what a text in single or double quotes says; one with an unknown escape as it is written."""
    body = token[1:-1]
    if "\\" not in body:
        return body
    rewritten = _ESCAPE_OR_QUOTE.sub(lambda part: _IN_JSON.get(part[0], part[0]), body)
    try:
        text: str = _DECODER.decode(f'"{rewritten}"')
    except ValueError:
        return body
    return text


def _atom(token: str, start: int) -> object:
    """Return a number, None for another word that is data, or what is neither."""
    if _NUMBER.fullmatch(token):
        value = coordinate(token)
        return None if value is None else Number(value, start, start + len(token))
    return None if token in _WORDS else _JUNK


def coordinate(digits: str) -> float | None:
    """Return the number that digits say, or None where it is too large to be a coordinate in any frame."""
    value = float(digits) if len(digits) <= _LONGEST_NUMBER else math.inf
    return value if abs(value) < _LARGEST_NUMBER else None
