"""What a quantized export does to answers: equal to the model with the same weights, and how far from the merged one.

Two questions that one number cannot answer. *Exact*: the written weights, in float32 activations and with the
reference's own image features, must give the greedy tokens and boxes of transformers with the dequantized weights: a
difference is a mistake in writing them. *Drift*: the export as it is shipped against the merged checkpoint: what
rounding costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_export.check.parity import MAX_LOST_INFORMATION, Predictions, compare, prompt_of, teacher_forced
from edgetune_export.check.reference import Sample
from edgetune_export.checkpoint import LoadedCheckpoint
from edgetune_runtime.backends import Arrays, Backend, Float, ImageFeatures, Int
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.codec.grounding import ParsedAnswer, parse
from edgetune_runtime.decode import Prompt, greedy
from edgetune_runtime.errors import ParityError
from edgetune_runtime.tokens import TextTokenizer

MAX_HALF_KL = 1e-3
"""Largest mean KL from the dequantized reference, in nats, where the export computes in float16 (2e-5 was seen)."""


@dataclass(frozen=True)
class Exactness(Predictions):
    """The written weights against the dequantized reference.

    Attributes:
        answers: greedy answers compared.
        answers_equal: how many were the reference's, token by token.
        boxes: answers of the reference with a box in them.
        boxes_equal: how many of these had the reference's boxes.
    """

    answers: int
    answers_equal: int
    boxes: int
    boxes_equal: int


@dataclass(frozen=True)
class Drift:
    """The export as shipped against the merged checkpoint.

    Attributes:
        source: the data that the pictures and phrases are from, or why generated ones took their place.
        records: how many.
        mean_kl: mean KL(merged || export) of the next-token distributions along the merged model's answers, in nats.
        lost_information: that KL as a share of the KL to the uniform distribution.
        token_agreement: share of these steps with the same most likely token.
        answers_equal: share of the answers that are the merged model's, token by token.
        boxes: answers of the merged model with a box in them.
        mean_iou: mean IoU of the export's boxes with them, None without any; min_iou is the smallest.
    """

    source: str
    records: int
    mean_kl: float
    lost_information: float
    token_agreement: float
    answers_equal: float
    boxes: int
    mean_iou: float | None
    min_iou: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class Answers:
    """Reads a checkpoint's answers, its own and an export's."""

    def __init__(self, checkpoint: LoadedCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = TextTokenizer(checkpoint.folder / "tokenizer.json")
        self._stop = frozenset(checkpoint.tokens["eos"])

    def prompt(self, sample: Sample, image: ImageFeatures) -> Prompt:
        """What the decode loop reads for a sample's question about these image features."""
        return prompt_of(sample.case, image, self._checkpoint.tokens["image"], self._checkpoint.spec.merge_size)

    def generate(self, sample: Sample, backend: Backend, prompt: Prompt) -> list[int]:
        """A backend's own greedy answer."""
        room = sample.case.new_tokens
        tokens = greedy(backend, prompt, stop=self._stop, max_new_tokens=room, max_length=len(prompt.token_ids) + room)
        return list(tokens)

    def read(self, sample: Sample, tokens: Sequence[int]) -> ParsedAnswer:
        """The boxes in an answer."""
        text = self._tokenizer.decode([token for token in tokens if token not in self._stop], keep_control=True)
        return parse(text, sample.case.pixels.geometry, self._checkpoint.family.box_format)


def measure_exact(checkpoint: LoadedCheckpoint, samples: Sequence[Sample], backend: Backend, table: Float) -> Exactness:
    """Compare a backend, fed with the reference's image features and token table [V, H], with the reference."""
    answers, fed = Answers(checkpoint), _Embedded(backend, table)
    rows, equal, with_boxes, same_boxes = [], 0, 0, 0
    for sample in samples:
        prompt = answers.prompt(sample, ImageFeatures(sample.features[0], sample.features[1:]))
        rows.append(teacher_forced(fed, prompt, sample.tokens))
        tokens = answers.generate(sample, fed, prompt)
        expected, actual = answers.read(sample, sample.tokens), answers.read(sample, tokens)
        equal += tokens == sample.tokens
        with_boxes += bool(expected.detections)
        same_boxes += bool(expected.detections) and actual.detections == expected.detections
    apart = compare(np.concatenate([sample.logits for sample in samples]), np.concatenate(rows))
    return Exactness(
        **asdict(apart), answers=len(samples), answers_equal=equal, boxes=with_boxes, boxes_equal=same_boxes
    )


def require_exact(exact: Exactness, *, half: bool) -> None:
    """Raise `ParityError` unless the written weights do what the dequantized reference does."""
    what = "the written weights differ from the dequantized reference"
    if half:
        if not exact.mean_kl <= MAX_HALF_KL:
            raise ParityError(f"{what}: KL {exact.mean_kl:.2e} in float16, at most {MAX_HALF_KL:.2e} allowed")
        return
    exact.require_exact(what)
    if exact.answers_equal < exact.answers or exact.boxes_equal < exact.boxes:
        raise ParityError(
            f"{what}: {exact.answers_equal} of {exact.answers} answers and {exact.boxes_equal} of {exact.boxes} "
            "answers with boxes are equal"
        )


def measure_drift(checkpoint: LoadedCheckpoint, samples: Sequence[Sample], backend: Backend, source: str) -> Drift:
    """Compare the export as shipped with the merged model's answers."""
    answers = Answers(checkpoint)
    rows, equal, overlaps = [], 0, []
    for sample in samples:
        pixels = sample.case.pixels
        prompt = answers.prompt(sample, backend.encode_images(pixels.arrays))
        rows.append(teacher_forced(backend, prompt, sample.tokens))
        tokens = answers.generate(sample, backend, prompt)
        equal += tokens == sample.tokens
        expected = answers.read(sample, sample.tokens).detections
        if expected:
            ours = answers.read(sample, tokens).detections
            overlaps.append(sample_iou(_boxes(ours), _boxes(expected)))
    apart = compare(np.concatenate([sample.logits for sample in samples]), np.concatenate(rows))
    return Drift(
        source=source,
        records=len(samples),
        mean_kl=apart.mean_kl,
        lost_information=apart.lost_information,
        token_agreement=apart.token_agreement,
        answers_equal=equal / len(samples),
        boxes=len(overlaps),
        mean_iou=float(np.mean(overlaps)) if overlaps else None,
        min_iou=float(np.min(overlaps)) if overlaps else None,
    )


def require_close(drift: Drift) -> None:
    """Raise `ParityError` where the answers are further from the merged model's than rounding explains."""
    if not drift.lost_information <= MAX_LOST_INFORMATION:
        raise ParityError(
            f"predictions are off on {drift.source}: KL {drift.mean_kl:.3f} from the merged model, "
            f"{drift.lost_information:.0%} of that of a blind guess",
            hint="calibrate with more samples, a smaller group size or more bits",
        )


def _boxes(detections: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([detection.box for detection in detections], np.float64).reshape(-1, 4)


class _Embedded(Backend):
    """A backend that looks token embeddings up in the checkpoint's own table."""

    def __init__(self, backend: Backend, table: Float) -> None:
        super().__init__(backend.shape)
        self._backend, self._table = backend, table

    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """As the backend."""
        return self._backend.encode_images(images)

    def embed_impl(self, token_ids: Int) -> Float:
        """Rows [S, H] of the table, not rounded as the export's."""
        return self._table[token_ids].copy()

    def reserve_impl(self, length: int) -> None:
        """As the backend."""
        self._backend.reserve(length)

    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """As the backend."""
        return self._backend.forward(embeddings, positions, deepstack)
