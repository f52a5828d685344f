"""From samples to the tensors that a model takes: for training with labels, for generation without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, token_id
from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.rope import mrope_positions
from edgetune_train.vision import ImageInputs

IGNORE = -100  # the label that torch's cross entropy leaves out of the loss
SOURCES = "sources"  # key of a batch: where its records stand, for messages; not for the model

Pack = tuple[Sample, ...]
"""Samples that share one sequence; each sees only itself."""

LocateBoxes = Callable[[Sequence[Sample], Sequence[tuple[int, int]], torch.Tensor], dict[str, torch.Tensor]]
"""Finds the boxes of a batch, see `box_loss.BoxLocator`: from the samples, the row and position where each begins, and
the positions [K] that have logits."""


@dataclass(frozen=True)
class Collator:
    """Puts samples into one batch.

    Attributes:
        image_id: id of the image placeholder token.
        pad_id: id to pad with.
        images: what gives the model its images.
        mrope_merge: patches per side of an image token where positions are multimodal (M-RoPE), else None.
        segments: tell the model where the samples of a pack begin, for attention that skips masks.
        typed_tokens: tell the model which tokens are image tokens (mm_token_type_ids).
        boxes: tells the objective where boxes are written, for one that wants to know.
        blank: goes beside samples without any picture, see `blank_sample`; None leaves them alone.
    """

    image_id: int
    pad_id: int
    images: ImageInputs
    mrope_merge: int | None = None
    segments: bool = False
    typed_tokens: bool = True
    boxes: LocateBoxes | None = None
    blank: Sample | None = None

    @classmethod
    def of(
        cls,
        base: HubCheckpoint,
        images: ImageInputs,
        *,
        segments: bool = False,
        boxes: LocateBoxes | None = None,
        blank: Sample | None = None,
    ) -> Collator:
        """Return the collator of a checkpoint.

        Raises:
            InputError: its tokenizer lacks a token of its family.
        """
        chat, special = base.family.chat, base.family.special_tokens
        image_id, pad_id = token_id(base.tokenizer, chat.image_token), token_id(base.tokenizer, special["pad"])
        merge = base.spec.merge_size if isinstance(base.spec, ImageSpec) else None
        return cls(image_id, pad_id, images, merge, segments, base.spec.typed_tokens, boxes, blank)

    def __call__(self, rows: Sequence[Sample | Pack]) -> dict[str, Any]:
        """Return a training batch: B sequences of length L, padded on the right, or the one sequence of a pack.

        Logits are asked for only where some sequence has a token to learn next: the same loss without a
        vocabulary-sized row for every image token.

        Returns:
            input_ids, mm_token_type_ids (1 on image tokens): int64 [B, L]; logits_to_keep: int64 [K], positions;
            labels and shift_labels: the token that follows each of those where it is learned, else -100, int64
            [B, K]; what `images` gives; attention_mask int64 [B, L], or for a pack what keeps its samples apart;
            with `boxes`, what it gives as `box_labels`; sources: where the records stand, such as "data.jsonl:17".
        """
        packs = [row for row in rows if isinstance(row, tuple)]
        if packs:
            return self._packed([sample for pack in packs for sample in pack])
        mine = [row for row in rows if not isinstance(row, tuple)]
        samples = self._seeing(mine)
        length = max(len(sample.ids) for sample in samples)
        labels = _labels([_filled(_following(sample), IGNORE, length) for sample in samples])
        return {
            **self._inputs(samples, [_filled(sample.ids, self.pad_id, length) for sample in samples]),
            **labels,
            **self._boxes(mine, [(row, 0) for row in range(len(mine))], labels),
            "attention_mask": torch.tensor([_filled([1] * len(sample.ids), 0, length) for sample in samples]),
            SOURCES: [sample.record.source for sample in mine],
        }

    def prompts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a batch to generate from: prompts padded on the left, since rows grow at their right end.

        Returns:
            input_ids, attention_mask, mm_token_type_ids: int64 [B, L]; and what `images` gives.
        """
        rows = [sample.prompt_ids for sample in samples]
        length = max(map(len, rows))
        return {
            **self._inputs(samples, [[self.pad_id] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        }

    def _packed(self, mine: Sequence[Sample]) -> dict[str, Any]:
        """Return one sequence [1, L] of all samples, unpadded.

        There is no attention mask: positions that start again at 0 tell transformers where a sample begins, and it
        makes the mask (or the segments of FlashAttention) of that, provided that no cache is used.
        """
        samples = self._seeing(mine)
        lengths = [len(sample.ids) for sample in samples]
        starts = [(0, start) for start in accumulate(lengths, initial=0)]
        labels = _labels([[label for sample in samples for label in _following(sample)]])
        batch = {
            **self._inputs(samples, [[token for sample in samples for token in sample.ids]]),
            **labels,
            **self._boxes(mine, starts[: len(mine)], labels),
            SOURCES: [sample.record.source for sample in mine],
            "use_cache": False,
        }
        text = np.concatenate([np.arange(length) for length in lengths])
        batch["position_ids"] = torch.from_numpy(text)[None]  # [1, L]
        if self.mrope_merge is not None:
            axes = self._mrope(samples, batch.get("image_grid_thw"), self.mrope_merge)
            batch["position_ids"] = torch.from_numpy(np.concatenate([text[None], axes]))[:, None]  # [4, 1, L]
        if self.segments:
            ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
            batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
        return batch

    def _mrope(self, samples: Sequence[Sample], grids: torch.Tensor | None, merge: int) -> npt.NDArray[np.int64]:
        """Return the (time, height, width) positions of each sample from 0 on, side by side: int64 [3, L]."""
        left = np.zeros((0, 3), np.int64) if grids is None else grids.numpy()
        positions = []
        for sample in samples:
            mine, left = np.split(left, [len(sample.images)])
            ids = np.array(sample.ids, dtype=np.int64)
            positions.append(mrope_positions(ids, mine, image_token=self.image_id, merge_size=merge)[0])
        return np.concatenate(positions, axis=1)

    def _seeing(self, samples: Sequence[Sample]) -> list[Sample]:
        seen = any(sample.images for sample in samples)
        return [*samples] if seen or self.blank is None else [*samples, self.blank]

    def _boxes(
        self, samples: Sequence[Sample], starts: Sequence[tuple[int, int]], labels: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        return {} if self.boxes is None else {"box_labels": self.boxes(samples, starts, labels["logits_to_keep"])}

    def _inputs(self, samples: Sequence[Sample], rows: list[list[int]]) -> dict[str, Any]:
        input_ids = torch.tensor(rows)
        return {
            "input_ids": input_ids,
            **({"mm_token_type_ids": (input_ids == self.image_id).long()} if self.typed_tokens else {}),
            **self._images(samples),
        }

    def _images(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the images of samples; one that cannot be read is told with the record that names it."""
        paths = {path: sample.record.source for sample in reversed(samples) for path in sample.images}
        try:
            return self.images([path for sample in samples for path in sample.images]) if paths else {}
        except ImageError as error:
            sources = [source for path, source in paths.items() if str(error).startswith(f"{path}: ")]
            raise ImageError(": ".join([*sources[:1], str(error)]), hint=error.hint) from error


def blank_sample(samples: Iterable[Sample]) -> Sample | None:
    """Return the shortest sample with a picture, with nothing of it learned, or None where no sample has one.

    Processes that train together wait for each other in every layer. One whose batch has no picture would leave the
    vision tower out, and the others wait there for ever; with this sample beside them, no batch is without.
    """
    pictured = [sample for sample in samples if sample.images]
    if not pictured:
        return None
    shortest = min(pictured, key=lambda sample: len(sample.ids))
    return replace(shortest, learned=[False] * len(shortest.ids))


def _filled(row: list[int], value: int, length: int) -> list[int]:
    return row + [value] * (length - len(row))


def _following(sample: Sample) -> list[int]:
    """Return for each token the one that follows it in the sample, where it is learned."""
    pairs = zip(sample.ids[1:], sample.learned[1:], strict=True)
    return [token if learned else IGNORE for token, learned in pairs] + [IGNORE]


def _labels(following: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the labels [B, K] of the positions [K] where any row learns something.

    `shift_labels` is what transformers calls labels that need no shift; it counts and computes the loss by them.
    """
    whole = torch.tensor(following)
    kept = (whole != IGNORE).any(dim=0).nonzero()[:, 0]
    labels = whole[:, kept]
    return {"labels": labels, "shift_labels": labels, "logits_to_keep": kept}
