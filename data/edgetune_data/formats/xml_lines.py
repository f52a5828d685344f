"""XML files whose elements know the line that they start on, for formats that are XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from xml.parsers import expat

from edgetune_data.formats.base import number_in
from edgetune_runtime.errors import excerpt
from edgetune_runtime.records.forms import FormError

Lines = dict[ElementTree.Element, int]


class Wrong(FormError):
    """Something is wrong on a line of an XML file."""

    def __init__(self, line: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line


def parse(path: Path) -> tuple[ElementTree.Element, Lines]:
    """Return the document's element and the lines that elements start on; a document type could expand without end.

    Raises:
        Wrong: the file cannot be read, is no XML, or has a document type.
    """
    parser, builder, lines = expat.ParserCreate(), ElementTree.TreeBuilder(), Lines()

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*_: Any) -> None:
        raise Wrong(parser.CurrentLineNumber, "a document type is not read", hint="remove the <!DOCTYPE> declaration")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise Wrong(
            error.lineno, f"not valid XML: {expat.ErrorString(error.code)} at column {error.offset + 1}"
        ) from error
    except (OSError, ValueError, LookupError) as error:  # gone, or in an encoding that nobody knows
        raise Wrong(1, f"cannot be read: {error}") from error
    return builder.close(), lines


def word_of(element: ElementTree.Element | None) -> str:
    """Return the text of an element without blanks around it; "" where there is none."""
    return ((element.text or "") if element is not None else "").strip()


def number_of(element: ElementTree.Element | None, lines: Lines, tag: str, line: int) -> float:
    """Return the number that an element holds.

    Raises:
        Wrong: there is no element (which `line` should have), or it holds no number.
    """
    if element is None:
        raise Wrong(line, f"no <{tag}>")
    try:
        return number_in(word_of(element))
    except ValueError as error:
        raise Wrong(lines[element], f"<{tag}> must be a number, got {excerpt(word_of(element), 40)}") from error


def attribute_of(element: ElementTree.Element, lines: Lines, name: str) -> float:
    """Return the number that an attribute of an element holds.

    Raises:
        Wrong: there is none.
    """
    text = element.get(name)
    if text is None:
        raise Wrong(lines[element], f"<{element.tag}> has no attribute {name!r}")
    try:
        return number_in(text)
    except ValueError as error:
        raise Wrong(lines[element], f"{name!r} of <{element.tag}> must be a number, got {excerpt(text, 40)}") from error
