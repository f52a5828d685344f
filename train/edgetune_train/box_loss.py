"""The box-aware loss: how far the boxes that a model is about to write are from the right ones.

Cross entropy knows right and wrong tokens, not near and far ones: 199 for 200 costs as much as 700. Here the tokens'
probabilities become an expected coordinate, and expected boxes are compared with the right ones by L1 and GIoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample
from edgetune_core.coordinates import END, SIGNS, Coordinate, expected_change, locate, sign_ids
from edgetune_runtime.errors import InputError
from edgetune_runtime.records import Record
from edgetune_train.objective import answer_loss

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
"""Of the two parts, as in DETR (arXiv 2005.12872, section A.4)."""


@dataclass(frozen=True)
class BoxLocator:
    """Finds the coordinates in a batch.

    Attributes:
        base: for its tokenizer and family.
    """

    base: HubCheckpoint

    @classmethod
    def of(cls, base: HubCheckpoint, samples: Iterable[Sample]) -> BoxLocator:
        """Return the locator of a checkpoint, after a look at the first samples with boxes.

        Raises:
            InputError: no sample has boxes, or the tokenizer joins digits.
        """
        locator = cls(base)
        if not any(locator._boxes(sample) for sample in samples):
            raise InputError("--box-loss: no record is answered with boxes", hint="train without it")
        return locator

    def __call__(
        self, samples: Sequence[Sample], starts: Sequence[tuple[int, int]], kept: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return where the batch's N boxes are written, padded to T tokens a number.

        Only records that are answered with boxes take part; text and conversations have cross entropy alone.

        Args:
            samples: what the batch was made of.
            starts: row and position in it of each sample's first token.
            kept: int64 [K], ascending: the positions that have logits.

        Returns:
            rows: int64 [N]; columns: int64 [N, 4, T], index among `kept` of the logits that choose the token;
            tokens: int64 [N, 4, T, 12], ids of the choices; drift: float32 [N, 4, T, 12], see
            `edgetune_core.coordinates.Steps`; chosen: int64 [N, 4, T]; values: float32 [N, 4], the right
            coordinates as fractions of the frame. What is padded is certain and costs nothing.

        Raises:
            InputError: the tokenizer joins digits; the message starts with the record's file and line.
        """
        found = [
            (row, start + len(sample.prompt_ids) - 1, box)
            for sample, (row, start) in zip(samples, starts, strict=True)
            for box in self._boxes(sample)
        ]
        longest = max((len(number.steps.chosen) for _, _, box in found for number in box), default=0)
        shape = (len(found), 4, longest)
        columns, chosen = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        tokens = np.zeros((*shape, END + 1), np.int64)
        drift = np.full((*shape, END + 1), np.nan, np.float32)
        drift[..., 0] = 0
        values = np.zeros(shape[:2], np.float32)
        signs = sign_ids(self.base.tokenizer, self.base.family)
        tokens[..., :END] = [signs.get(sign, 0) for sign in SIGNS]
        for index, (_, before, box) in enumerate(found):
            for corner, number in enumerate(box):
                steps = len(number.steps.chosen)
                at = (index, corner, slice(steps))
                columns[at] = np.searchsorted(kept.numpy(), before + number.start + np.arange(steps))
                chosen[at], drift[at] = number.steps.chosen, number.steps.drift
                tokens[index, corner, :, END] = number.end_id
                values[index, corner] = number.value
        arrays = {"columns": columns, "tokens": tokens, "drift": drift, "chosen": chosen, "values": values}
        rows = torch.tensor([row for row, _, _ in found], dtype=torch.int64)
        return {"rows": rows, **{name: torch.from_numpy(array) for name, array in arrays.items()}}

    def _boxes(self, sample: Sample) -> list[list[Coordinate]]:
        record = sample.record
        if not isinstance(record, Record) or record.boxes is None or not len(record.boxes):
            return []
        try:
            ids, boxes = locate(record, sample.geometry, self.base.family, self.base.tokenizer)
        except InputError as error:
            raise InputError(f"{record.source}: {error}", hint=error.hint) from error
        assert sample.answer_ids[: len(ids)] == ids, "the sample's answer is not what the codec writes"
        return boxes


def expected_boxes(logits: torch.Tensor, boxes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the expected boxes, float32 [N, 4] xyxy as fractions of the frame, differentiable.

    A number is written sign by sign. Up to the first wrong sign the probabilities that the model gives after the right
    ones are its own; what it would write after a wrong one is unknown, and is taken as the nearest number that is
    still possible. So each coordinate is x + sum_t w_t sum_c q_t(c) drift_t(c): x the right one, q_t the
    probabilities among the signs that may stand there, w_t the product of those of the right signs before t.

    Args:
        logits: [B, K, V].
        boxes: what `BoxLocator` returns.
    """
    at = (boxes["rows"][:, None, None, None], boxes["columns"][..., None], boxes["tokens"])
    scores = logits[at].float()  # [N, 4, T, 12]
    expected: torch.Tensor = boxes["values"] + expected_change(scores, boxes["drift"], boxes["chosen"])
    return expected


def giou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the generalized IoU [N] of boxes [N, 4] and [N, 4], xyxy in one frame, in -1 to 1 (arXiv 1902.09630).

    A box without area, x1 >= x2 or y1 >= y2, overlaps nothing; the enclosing box still holds its corners.
    """
    sides = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    overlap = sides.clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - overlap
    corners = torch.stack([first, second]).unflatten(-1, (2, 2))  # [2, N, 2, 2]
    hull = (corners.amax((0, 2)) - corners.amin((0, 2))).prod(-1)
    tiny = torch.finfo(hull.dtype).tiny
    value: torch.Tensor = overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
    return value


class BoxAware:
    """The objective with the box term: cross entropy + weight * (5 L1 + 2 (1 - GIoU)), see `objective.Objective`.

    L1 is the sum over a box's four coordinates. Both parts are sums over the samples divided by the learned tokens of
    the optimizer step, so that an answer's box weighs the same against its words whatever else is in the step.
    Without gradients, as in validation, it is the cross entropy alone: losses of different runs can be compared.

    Args:
        weight: of the box term.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._seen: list[torch.Tensor] = []  # of each batch: boxes, sum of L1, sum of 1 - GIoU

    def __call__(self, logits: torch.Tensor, batch: Mapping[str, Any], tokens: torch.Tensor | int) -> torch.Tensor:
        """Return the batch's share of the loss; its `box_labels` are what `BoxLocator` returns."""
        loss, boxes = answer_loss(logits, batch, tokens), batch["box_labels"]
        if not logits.requires_grad or not len(boxes["rows"]):
            return loss
        found = expected_boxes(logits, boxes)
        distance = (found - boxes["values"]).abs().sum()
        miss = (1 - giou(found, boxes["values"])).sum()
        self._seen.append(torch.stack([distance.new_tensor(len(found)), distance, miss]).detach())
        term: torch.Tensor = self._weight * (L1_WEIGHT * distance + GIOU_WEIGHT * miss) / tokens
        return loss + term

    def figures(self) -> dict[str, float]:
        """Return the means per box since the last call: `box_l1` and `box_giou`, nothing where there was no box."""
        if not self._seen:
            return {}
        count, distance, miss = torch.stack(self._seen).sum(0).tolist()
        self._seen.clear()
        return {"box_l1": distance / count, "box_giou": 1 - miss / count}
