"""What boxes a model has in mind, read from its distributions over digits: a smooth measure of drift.

The answer of a record is given to the model (teacher forcing). Where it expects a coordinate's digits, each digit place
j of n has a distribution p_j over 0 .. 9, and the coordinate is expected to be Σ_j 10^(n-1-j) Σ_d d · p_j(d). Greedy
boxes change by whole digits or not at all; expected ones move with every error of the weights, so that a few dozen
records tell layers apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune_core.conversation import Sample, token_id
from edgetune_runtime.tokens import TextTokenizer

BOX = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]")


@dataclass(frozen=True)
class BoxPlaces:
    """Where the boxes of an answer are.

    Attributes:
        digits: for each box its 4 coordinates, each the positions of its digits among the answer's tokens.
        sides: float32 [boxes, 2], width and height of each, at least 1, in the model's frame.
    """

    digits: tuple[tuple[tuple[int, ...], ...], ...]
    sides: Tensor


def digit_tokens(tokenizer: TextTokenizer) -> Tensor:
    """Return the token ids of "0" .. "9", int64 [10].

    Raises:
        InputError: a digit is not one token.
    """
    return torch.tensor([token_id(tokenizer, str(digit)) for digit in range(10)])


def box_places(sample: Sample, tokenizer: TextTokenizer) -> BoxPlaces:
    """Find the boxes in an answer; there are none in one that is not about boxes."""
    pieces = [tokenizer.decode([token]) for token in sample.answer_ids]
    owner = [index for index, piece in enumerate(pieces) for _ in piece]
    boxes, sides = [], []
    for found in BOX.finditer("".join(pieces)):
        boxes.append(tuple(tuple(owner[slice(*found.span(part))]) for part in (1, 2, 3, 4)))
        left, top, right, bottom = map(int, found.groups())
        sides.append([max(right - left, 1), max(bottom - top, 1)])
    return BoxPlaces(tuple(boxes), torch.tensor(sides, dtype=torch.float32).view(-1, 2))


def expected_boxes(logits: Tensor, places: BoxPlaces, digits: Tensor) -> Tensor:
    """Return the boxes that a model expects, float64 [boxes, 4] in its own frame.

    Args:
        logits: [answer tokens, vocabulary], at each answer token's place what the model expects there.
        places: of the answer.
        digits: ids of the ten digits.
    """
    means = logits[:, digits.to(logits.device)].double().softmax(1) @ torch.arange(10.0, device=logits.device).double()
    return torch.stack([torch.stack([_number(means, place) for place in box]) for box in places.digits]).cpu()


def _number(means: Tensor, place: Sequence[int]) -> Tensor:
    powers = torch.tensor([10.0 ** (len(place) - 1 - rank) for rank in range(len(place))], dtype=torch.float64)
    return (means[list(place)] * powers.to(means.device)).sum()


def drift(boxes: Tensor, reference: Tensor, sides: Tensor) -> Tensor:
    """Return how far boxes [boxes, 4] are from reference ones: float64 [boxes].

    The shifts of the four edges, each by the box's side across it, add up. That is 1 - IoU to first order, and unlike
    it still tells boxes apart when they no longer overlap.
    """
    shift = (boxes - reference).abs()
    return ((shift[:, :2] + shift[:, 2:]) / sides).sum(1)
