"""The one codec between boxes and the text that a model reads and writes.

Training, calibration, export, evaluation and inference all come through here, so a box cannot shift
between them. Boxes outside are always xyxy in float pixels of the original upright image (see
`edgetune_runtime.codec.geometry`); the family says which frame and which text the model uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgetune_runtime.codec import grammar
from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.codec.confidence import BoxScores, TokenProbability, joint_probability
from edgetune_runtime.codec.geometry import (
    Boxes,
    Geometry,
    as_boxes,
    step_in_pixels,
    to_image,
    to_model,
)
from edgetune_runtime.errors import InputError

__all__ = [
    "Detection",
    "Geometry",
    "ParsedAnswer",
    "encode",
    "encode_name",
    "encode_place",
    "lay_out",
    "parse",
    "to_image",
    "to_model",
]

_MAX_PROBLEMS = 3
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Detection:
    """One box that a model answered with.

    Examples:
        >>> from edgetune_runtime import Detection
        >>> owl = Detection((110.0, 28.5, 244.0, 134.0), "the owl", 0.93)
        >>> x1, y1, x2, y2 = owl.box
        >>> owl.label, x2 - x1
        ('the owl', 134.0)

    Attributes:
        box: (x1, y1, x2, y2) in float pixels of the original upright image.
        label: what the model calls it; "" where it gave no name.
        score: confidence in 0-1 (see `edgetune_runtime.codec.confidence`), or None where there is none.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float | None = None


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer text says.

    Attributes:
        text: the text as the model wrote it.
        detections: the boxes in it, in order. A box that leaves the image is kept exactly as written;
            a box that is not one (x1 >= x2 or y1 >= y2) is left out. `problem` reports both.
        complete: False if the text breaks off in the middle of a box; boxes before that are kept,
            the broken one is not guessed.
        problem: what is wrong with the text, or None.
        refused: the model said that the object is not there.
        refusal_score: probability (0-1) with which it said so: the product over the answer's tokens. None where
            nothing was refused, or where the tokens' probabilities are not known.
    """

    text: str
    detections: list[Detection]
    complete: bool
    problem: str | None
    refused: bool
    refusal_score: float | None = None

    @property
    def status(self) -> Literal["found", "refused", "unparsed"]:
        """One word for statistics: boxes found, object declared absent, or neither could be read."""
        if self.detections:
            return "found"
        return "refused" if self.refused else "unparsed"


def encode(boxes: npt.ArrayLike, labels: Sequence[str], geometry: Geometry, box_format: BoxFormat) -> str:
    """Return the answer text for boxes, as the family writes it.

    Coordinates are rounded to the nearest step of the model frame, so reading them back is off by at
    most half a step. No boxes means that the object is absent, which is `box_format.absent`. The style of
    LLaVA has no room for labels.

    Args:
        boxes: [N, 4] xyxy in pixels of the original image.
        labels: N names.
        geometry: sizes of the image the boxes belong to.
        box_format: how boxes are written.

    Raises:
        InputError: counts differ; a box leaves the image, is empty, or is so thin that rounding would
            make it empty; a label would break the text.
    """
    return lay_out(boxes, labels, geometry, box_format)[0]


def lay_out(
    boxes: npt.ArrayLike, labels: Sequence[str], geometry: Geometry, box_format: BoxFormat
) -> tuple[str, list[list[grammar.Span]]]:
    """Return what `encode` does, and where each box's four numbers stand in it (start and end in characters).

    Raises:
        InputError: as `encode`.
    """
    array = as_boxes(boxes)
    if len(labels) != len(array):
        raise InputError(f"{len(array)} boxes but {len(labels)} labels")
    if not len(array):
        return box_format.absent, []
    for label in labels:
        _check_label(label, box_format)
    return grammar.lay_out([_written(box, geometry, box_format) for box in array], labels, box_format.style)


def encode_place(numbers: Sequence[float], geometry: Geometry, box_format: BoxFormat) -> str:
    """Return one box or point as it stands inside a sentence of a conversation.

    Args:
        numbers: (x1, y1, x2, y2) or (x, y) in pixels of the original image.
        geometry: sizes of the image it lies on.
        box_format: how boxes are written.

    Raises:
        InputError: it leaves the image, or is a box that `encode` refuses.
    """
    if len(numbers) == 4:
        return grammar.write_place(_written(as_boxes([list(numbers)])[0], geometry, box_format), box_format.style)
    x, y = numbers
    if not (0 <= x <= geometry.width and 0 <= y <= geometry.height):
        raise InputError(f"point {_show(numbers)} is outside the {geometry.width}x{geometry.height} image")
    at = to_model([[x, y, x, y]], geometry, box_format)[0, :2]
    return grammar.write_place(_formatted(at, box_format), box_format.style)


def encode_name(name: str, box_format: BoxFormat) -> str:
    """Return an object's name as it stands inside a sentence of a conversation.

    Raises:
        InputError: it would break the family's tags.
    """
    _check_label(name, box_format)
    return grammar.write_name(name, box_format.style)


def _check_label(label: str, box_format: BoxFormat) -> None:
    if box_format.style not in ("json", "plain") and re.search(r"[<>\n]", label):
        raise InputError(
            f"label {label!r} cannot be written between the tags of a name", hint="remove < > and line breaks"
        )


def _formatted(numbers: Boxes, box_format: BoxFormat) -> list[str]:
    places = box_format.decimals
    return [f"{number:.{places}f}" for number in np.round(numbers, places)]


def _written(box: Boxes, geometry: Geometry, box_format: BoxFormat) -> list[str]:
    """Return the four numbers of a box [4] in image pixels as the family writes them."""
    if complaint := _complaint(box, geometry, np.zeros(2)):
        raise InputError(f"box {_show(box)} {complaint}")
    numbers = to_model([box], geometry, box_format)[0]
    rounded = np.round(numbers, box_format.decimals)
    if rounded[0] >= rounded[2] or rounded[1] >= rounded[3]:
        step_x, step_y = step_in_pixels(geometry, box_format)[:2]
        raise InputError(
            f"box {_show(box)} is too thin: the model's coordinates step by {step_x:.2f} x {step_y:.2f} pixels, "
            "and both of its sides round to the same",
            hint="crop the image around small objects, or leave the box out",
        )
    return _formatted(numbers, box_format)


def parse(
    text: str, geometry: Geometry, box_format: BoxFormat, tokens: Sequence[TokenProbability] = ()
) -> ParsedAnswer:
    """Read a model's answer. Never raises: what is wrong with the text is reported in the result.

    Args:
        text: the answer, with or without special tokens.
        geometry: sizes of the image it speaks about.
        box_format: how its model writes boxes.
        tokens: the tokens of the text with their probabilities, for the boxes' scores; none where they are unknown.
    """
    body, thinking = _answer_part(text)
    if _bare(_TAG.sub("", body)) in map(_bare, (box_format.absent, *box_format.refusals)):
        return ParsedAnswer(text, [], True, None, True, joint_probability(tokens))

    reading = grammar.read(body, box_format)
    boxes = to_image([box.numbers for box in reading.boxes], geometry, box_format)
    problems, detections = list(reading.problems), []
    # A legal coordinate may come back half a step outside, where the frame's edge is not the image's (LLaVA).
    slack = step_in_pixels(geometry, box_format)[:2] / 2 + 1e-6
    scores = BoxScores(text, tokens)
    for found, box in zip(reading.boxes, boxes, strict=True):
        if complaint := _complaint(box, geometry, slack):
            problems.append(f"box {_show(found.numbers)} {complaint}")
        x1, y1, x2, y2 = box.tolist()
        if x1 < x2 and y1 < y2:
            detections.append(Detection((x1, y1, x2, y2), _printable(found.label), scores.of(found.spans)))
    complete = reading.complete and not thinking
    refused = reading.empty_list and not reading.boxes and complete and not problems
    if thinking:
        problems.insert(0, "the text breaks off before the answer, in the model's thoughts")
    elif not complete:
        problems.insert(0, f"the text breaks off after {len(reading.boxes)} complete boxes")
    elif not reading.boxes and not problems and not refused:
        problems.append("no box in the answer")
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [f"and {len(problems) - _MAX_PROBLEMS} more"]
    score = joint_probability(tokens) if refused else None
    return ParsedAnswer(text, detections, complete, "; ".join(problems) or None, refused, score)


def _answer_part(text: str) -> tuple[str, bool]:
    """Return a text with blanks for what is not the answer, and whether it breaks off in the model's thoughts.

    Blanked are code fences and what a model thinks before it answers. Where its prompt opened the thoughts, the text
    holds only their end. Blanks, so that what is left keeps its place.
    """
    body = _THOUGHTS.sub(_blank, text)
    thoughts = body.rfind("</think>")
    if thoughts >= 0:
        body = " " * (thoughts + len("</think>")) + body[thoughts + len("</think>") :]
    thinking = "<think>" in text and text.rfind("<think>") > text.rfind("</think>")
    return _FENCE.sub(_blank, body), thinking


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _printable(label: str) -> str:
    """Return a label with halves of characters, which JSON's escapes can spell and UTF-8 cannot, as escapes again."""
    return label.encode("utf-8", "backslashreplace").decode()


def _bare(words: str) -> str:
    """Return words without what does not matter to a refusal."""
    return "".join(words.split()).strip("\"'`.").casefold()


def _complaint(box: Boxes, geometry: Geometry, slack: Boxes) -> str | None:
    """Return what is wrong with one box [4] in image pixels, or None. `slack` [2] is allowed outside, in x and y."""
    x1, y1, x2, y2 = box.tolist()
    if x1 >= x2:
        return "is empty or inverted: x1 >= x2"
    if y1 >= y2:
        return "is empty or inverted: y1 >= y2"
    width, height = geometry.width, geometry.height
    if x1 < -slack[0] or y1 < -slack[1] or x2 > width + slack[0] or y2 > height + slack[1]:
        return f"is outside the {width}x{height} image"
    return None


def _show(box: Sequence[float] | Boxes) -> str:
    return "[" + ", ".join(f"{number:g}" for number in box) + "]"
