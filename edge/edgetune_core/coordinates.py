"""Coordinates as a model writes them, token by token, and the boxes that it expects while it writes.

What a model has in mind is smoother than what it says: greedy boxes change by whole digits or not at all, expected ones
move with every change of its weights. An answer is given to the model (teacher forcing), and `expected_change` turns
its probabilities, token by token, into a number. Training and calibration ask for it with different choices:

- `locate` has all of them, so that nothing is missing from a loss: which tokens may stand where, where each one leads,
  and that a wrong one ends the number that was meant (see `edgetune_train.box_loss`).
- `box_places` has the ten digits at each place, whatever stands before, which is enough to tell how far weights drift:
  with p_j the distribution at digit place j of n, a coordinate is expected to be Σ_j 10^(n-1-j) Σ_d d · p_j(d).

A family's frame holds finitely many numbers, 0 to its size in steps of its last decimal, and each has one text. At
every token of a coordinate the model chooses among the signs that still lead to one of them: a digit, the decimal
point, or the end of the number. A choice other than the right one leaves a set of numbers that can still be written;
the one nearest to the right number says how far that choice leads astray at least.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetune_core.conversation import Sample, token_id
from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.geometry import Geometry, frame_size
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Family
from edgetune_runtime.records import Record
from edgetune_runtime.tokens import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

SIGNS = "0123456789."
"""What a coordinate is written with. Choices are numbered by it; the one after the last is the end of the number."""

END = len(SIGNS)


@dataclass(frozen=True)
class Steps:
    """The choices of one number, one row for each token of it and one for the token that ends it.

    Attributes:
        chosen: int64 [T], the right choice, as numbered by `SIGNS`.
        drift: float64 [T, 12], for each choice the number nearest to the right one that can be written after it,
            minus the right one, as a fraction of the frame; 0 for the right choice, NaN where there is no such number.
    """

    chosen: npt.NDArray[np.int64]
    drift: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coordinate:
    """One coordinate in an answer.

    Attributes:
        start: index of its first token among the answer's tokens; the others follow.
        value: the number as written, as a fraction of the frame.
        end_id: id of the token after it.
        steps: its choices.
    """

    start: int
    value: float
    end_id: int
    steps: Steps


def locate(
    record: Record, geometry: Geometry, family: Family, tokenizer: TextTokenizer
) -> tuple[list[int], list[list[Coordinate]]]:
    """Return the tokens of a record's answer and the four coordinates (x1, y1, x2, y2) of each box in them.

    The tokens are those of `conversation.prepare`, less the one that ends the answer.

    Args:
        record: of kind "ground"; it may have no boxes.
        geometry: sizes of its image.
        family: how boxes are written.
        tokenizer: the checkpoint's.

    Raises:
        InputError: the tokenizer does not give every sign of a number a token of its own, or the box cannot be written.
    """
    assert record.boxes is not None
    words, boxes = grounding.lay_out(record.boxes, record.labels, geometry, family.box_format)
    opening = family.chat.before_answer
    text = opening + words
    ids, spans = tokenizer.encode_with_spans(text, after=family.chat.last_suffix)
    places = family.box_format.decimals
    limits = [round(size * 10**places) for size in frame_size(geometry, family.box_format).tolist()]
    known = sign_ids(tokenizer, family)
    first_at = {start: index for index, (start, _) in reversed(list(enumerate(spans)))}
    found = []
    for box in boxes:
        corners = []
        for (start, end), limit in zip(box, limits, strict=True):
            start, end = start + len(opening), end + len(opening)
            number, first = text[start:end], first_at.get(start, -1)
            expected = [(known[sign], (start + i, start + i + 1)) for i, sign in enumerate(number)]
            last = first + len(number)
            if first < 0 or list(zip(ids[first:last], spans[first:last], strict=True)) != expected or last >= len(ids):
                raise InputError(
                    f"the tokenizer does not write {number!r} in {text!r} with one token for each digit",
                    hint="train without --box-loss",
                )
            step = round(float(number) * 10**places)
            corners.append(Coordinate(first, step / limit, ids[last], steps_of(step, limit, places)))
        found.append(corners)
    return ids, found


def sign_ids(tokenizer: TextTokenizer, family: Family) -> dict[str, int]:
    """Return the token ids of the signs that the family's coordinates are written with.

    Raises:
        InputError: the tokenizer lacks one.
    """
    ids = {}
    for sign in SIGNS if family.box_format.decimals else SIGNS[:-1]:
        number = tokenizer.id_of(sign)
        if number is None:
            raise InputError(f"the tokenizer has no token {sign!r}", hint="train without --box-loss")
        ids[sign] = number
    return ids


@lru_cache(maxsize=16_384)
def steps_of(number: int, limit: int, places: int) -> Steps:
    """Return the choices of one number.

    Args:
        number: the right one, counted in steps of the last decimal.
        limit: the largest one, in the same unit.
        places: decimals that are written.
    """
    text = _text(number, places)
    writable = _writable(limit, places)
    drift = np.full((len(text) + 1, END + 1), np.nan)
    for row in range(len(text) + 1):
        prefix = text[:row]
        for choice, sign in enumerate(SIGNS):
            if values := writable.get(prefix + sign):
                drift[row, choice] = (_nearest(values, number) - number) / limit
        if prefix and _is_whole(prefix, places):
            drift[row, END] = (round(float(prefix) * 10**places) - number) / limit
    return Steps(np.array([*map(SIGNS.index, text), END]), drift)


@lru_cache(maxsize=64)
def _writable(limit: int, places: int) -> dict[str, list[int]]:
    """Return for each beginning of a text the numbers from 0 to `limit`, ascending, whose texts begin so."""
    found: dict[str, list[int]] = {}
    for number in range(limit + 1):
        text = _text(number, places)
        for end in range(1, len(text) + 1):
            found.setdefault(text[:end], []).append(number)
    return found


def _text(number: int, places: int) -> str:
    return f"{number / 10**places:.{places}f}"


def _is_whole(text: str, places: int) -> bool:
    """Whether the beginning of a number's text is a number's text itself."""
    return len(text.partition(".")[2]) == places


def _nearest(values: list[int], number: int) -> int:
    at = bisect.bisect_left(values, number)
    return min(values[max(at - 1, 0) : at + 1], key=lambda value: abs(value - number))


_NOT_LEARNED = "|"  # stands for a token that is none of an answer's: no box goes across it
_BOX = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]")


@dataclass(frozen=True)
class BoxPlaces:
    """Where the boxes of a sample's answers are.

    Attributes:
        digits: for each box its 4 coordinates, each the positions of its digits among `Sample.answer_ids`.
        sides: float32 [boxes, 2], width and height of each, at least 1, in the model's frame.
    """

    digits: tuple[tuple[tuple[int, ...], ...], ...]
    sides: Tensor


def digit_tokens(tokenizer: TextTokenizer) -> Tensor:
    """Return the token ids of "0" .. "9", int64 [10].

    Raises:
        InputError: a digit is not one token.
    """
    import torch

    return torch.tensor([token_id(tokenizer, str(digit)) for digit in range(10)])


def box_places(sample: Sample, tokenizer: TextTokenizer) -> BoxPlaces:
    """Find the boxes in a sample's answers; of a conversation in all that are learned, not in what the user says."""
    import torch

    learned = sample.learned[-len(sample.answer_ids) :]
    pieces = [
        tokenizer.decode([token]) if mine else _NOT_LEARNED
        for token, mine in zip(sample.answer_ids, learned, strict=True)
    ]
    owner = [index for index, piece in enumerate(pieces) for _ in piece]
    boxes, sides = [], []
    for found in _BOX.finditer("".join(pieces)):
        boxes.append(tuple(tuple(owner[slice(*found.span(part))]) for part in (1, 2, 3, 4)))
        left, top, right, bottom = map(int, found.groups())
        sides.append([max(right - left, 1), max(bottom - top, 1)])
    return BoxPlaces(tuple(boxes), torch.tensor(sides, dtype=torch.float32).view(-1, 2))


def expected_boxes(logits: Tensor, places: BoxPlaces, digits: Tensor) -> Tensor:
    """Return the boxes that a model expects from its digits, float64 [boxes, 4] in its own frame.

    Args:
        logits: [answer tokens, vocabulary], at each answer token's place what the model expects there.
        places: of the answer.
        digits: ids of the ten digits.
    """
    import torch

    longest = max((len(place) for box in places.digits for place in box), default=0)
    shape = (len(places.digits), 4, longest)
    columns = torch.zeros(shape, dtype=torch.int64)
    worth = torch.full((*shape, len(digits)), torch.nan, dtype=torch.float64)
    worth[..., 0] = 0  # what is padded is certain to be worth nothing
    for row, box in enumerate(places.digits):
        for corner, place in enumerate(box):
            columns[row, corner, : len(place)] = torch.tensor(place)
            powers = 10.0 ** torch.arange(len(place) - 1, -1, -1, dtype=torch.float64)
            worth[row, corner, : len(place)] = powers[:, None] * torch.arange(10.0, dtype=torch.float64)
    scores = logits[:, digits.to(logits.device)].double()[columns.to(logits.device)]
    return expected_change(scores, worth.to(logits.device)).cpu()


def expected_change(scores: Tensor, change: Tensor, right: Tensor | None = None) -> Tensor:
    """Return how much the choices of numbers are expected to add up to: the sum over tokens of Σ_c p(c) change(c).

    Args:
        scores: [..., T, C], the logits of C choices at each of a number's T tokens; differentiable.
        change: [..., T, C], what each choice adds to the number; NaN where it cannot be made.
        right: int64 [..., T], the right choices. With them a token counts by how likely all right ones before it are:
            after a wrong one another number is being written. Without, every token counts.

    Returns:
        [...], in the dtype of `scores`.
    """
    import torch

    logs = scores.masked_fill(change.isnan(), -torch.inf).log_softmax(dim=-1)
    added = (logs.exp() * change.nan_to_num()).sum(-1)
    if right is not None:
        sure = logs.gather(-1, right[..., None])[..., 0]
        added = (sure.cumsum(-1) - sure).exp() * added
    return added.sum(-1)
