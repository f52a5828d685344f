"""What the self-check asks, and what transformers makes of the answers: the reference that an export is compared with.

The export answers greedily; the reference reads prompt and answer in one pass and tells its logits at every step. Where
its most likely token is the answer's at every step, its own greedy answer is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from edgetune_core.blocks import final_norm
from edgetune_core.conversation import Sample as Conversed
from edgetune_core.conversation import prepare
from edgetune_core.progress import Tell, no_one
from edgetune_core.streaming import StreamedModel
from edgetune_core.weightset import WeightSet
from edgetune_export.check.blocks import watched
from edgetune_export.checkpoint import OpenCheckpoint
from edgetune_export.decoder.rounding import to_numpy
from edgetune_runtime.codec import grammar
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import EdgetuneError
from edgetune_runtime.images.base import Arrays, Preprocessing
from edgetune_runtime.images.load import load_image
from edgetune_runtime.manifest import sha256_tree
from edgetune_runtime.records import read_entries
from edgetune_runtime.tokens import TextTokenizer

Float = npt.NDArray[np.float32]

RECORDS = 8
"""How many of the calibration records an export is tried on."""

SAMPLES = "samples.jsonl"
"""The records of a weight set that were read from another format than edgetune's own."""

_SHAPES = {"square": (8, 8), "wide": (4, 14), "tall": (13, 3)}
"""Test pictures as (rows, columns) of image tokens; the checkpoint's own limits may enlarge them."""

_PHRASE = "the red cup to the left of the clock"
_PICTURE_TOKENS, _RECORD_TOKENS = 16, 64


@dataclass(frozen=True)
class Case:
    """One prompt about one picture or several, and the longest answer to it.

    Attributes:
        name: what it is called.
        images: the model's arrays of each picture.
        raw: the same with pixels as they are.
        arrays: of all pictures, as transformers takes them together.
        geometry: of the first.
        token_ids: the prompt.
        new_tokens: length of the answer at most.
    """

    name: str
    images: tuple[Arrays, ...]
    raw: tuple[Arrays, ...]
    arrays: Arrays
    geometry: Geometry
    token_ids: npt.NDArray[np.int64]
    new_tokens: int


@dataclass(frozen=True)
class Cases:
    """What an export is asked.

    Attributes:
        pictures: about generated pictures.
        records: about calibration records; empty without a weight set, or when they are gone.
        source: where the records come from, or why there are none.
    """

    pictures: list[Case]
    records: list[Case]
    source: str


@dataclass(frozen=True)
class Sample:
    """What a model makes of a case and an answer.

    Attributes:
        case: the question.
        features: of its pictures, [image tokens, H] each.
        logits: [steps, V].
        tokens: the answer's ids.
        states: [blocks, W, H] after each block of the decoder, of the watched tokens; None where they were not kept.
    """

    case: Case
    features: tuple[Float, ...]
    logits: Float
    tokens: list[int]
    states: Float | None = None


def generated_cases(checkpoint: OpenCheckpoint) -> list[Case]:
    """A square, a wide and a tall picture with structure at several scales."""
    text, cases = checkpoint.family.ground_prompt.replace("{phrase}", _PHRASE), []
    for seed, (name, (rows, columns)) in enumerate(_SHAPES.items()):
        side = checkpoint.spec.token_pixels
        picture = test_image(columns * side, rows * side, seed)
        cases.append(make_case(checkpoint, name, picture, text, _PICTURE_TOKENS))
    return cases


def record_cases(
    checkpoint: OpenCheckpoint, weights: WeightSet, max_length: int | None = None
) -> tuple[list[Case], str]:
    """Some of the records that a weight set was calibrated on, evenly spread, and where they come from.

    A conversation is asked for its last answer, after all of its pictures and the answers before. What has no picture,
    or does not fit into the bundle, is left out.

    Args:
        checkpoint: whose prompts are asked.
        weights: the set.
        max_length: of prompt and answer together, in tokens; None for no bound.

    Returns:
        The cases, and the data's path; no cases and the reason when the data is gone, was changed or does not fit.
    """
    data = (weights.manifest.get("inputs") or {}).get("data")
    if not isinstance(data, dict):
        return [], "the weight set names no records"
    kept = weights.folder / SAMPLES
    path = kept if kept.is_file() else Path(data["path"])
    try:
        if path != kept and sha256_tree(path) != data["sha256"]:
            return [], f"{path} has changed since the calibration"
        used = frozenset((weights.fields.get("calibration") or {}).get("sources") or ())
        every = [record for record in read_entries(path) if record.images]
        records = [record for record in every if record.source in used] or every
        tokenizer = TextTokenizer(checkpoint.folder / "tokenizer.json")
        samples = prepare(records, checkpoint.family, checkpoint.spec, tokenizer)
        if max_length is not None:
            samples = [each for each in samples if len(each.last_prompt_ids) + _RECORD_TOKENS <= max_length]
        if not samples:
            return [], f"no record of {path} has a picture and fits into {max_length} tokens"
        chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(RECORDS, len(samples))).astype(int)]
        return [_asked(sample, checkpoint.spec) for sample in chosen], str(path)
    except EdgetuneError as error:
        return [], f"the calibration records cannot be read any more: {error}"


def _asked(sample: Conversed, spec: Preprocessing) -> Case:
    """The last question of a record or conversation, after all that was said and shown before."""
    pictures = [load_image(image) for image in sample.images]
    images, raw = (tuple(spec.arrays(picture, raw=raw) for picture in pictures) for raw in (False, True))
    ids = np.array(sample.last_prompt_ids, np.int64)
    return Case(sample.record.source, images, raw, spec.join(images), sample.geometry, ids, _RECORD_TOKENS)


def make_case(checkpoint: OpenCheckpoint, name: str, image: Image.Image, text: str, new_tokens: int) -> Case:
    """A prompt of the user's whole words about a picture."""
    spec, family = checkpoint.spec, checkpoint.family
    plan, arrays = spec.plan(*image.size), spec.arrays(image)
    ids = TextTokenizer(checkpoint.folder / "tokenizer.json").prompt(
        family.chat,
        text,
        image_tokens=plan.pieces,
        image_token=checkpoint.tokens["image"],
        allowed=grammar.tags(family.box_format.style),
    )
    return Case(name, (arrays,), (spec.arrays(image, raw=True),), spec.join([arrays]), plan.geometry, ids, new_tokens)


def test_image(width: int, height: int, seed: int) -> Image.Image:
    """A picture with structure at several scales, the same for the same seed."""
    generator = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3), np.float64)
    for cells in (3, 9, 27):
        noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layers += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((layers / 3).astype(np.uint8))


class Reference:
    """A model of transformers that reads answers; each picture goes through its vision tower once.

    Args:
        streamed: the model.
        checkpoint: that it is of, or whose weights were rounded in it.
        seen: what its vision tower made of the pictures, by the case's identity, where another reference has seen them.
        keeps_states: whether the samples that it gives have states.
        tell: called with the number of a layer that is loaded and how many there are.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        checkpoint: OpenCheckpoint,
        seen: dict[int, Any] | None = None,
        *,
        keeps_states: bool = False,
        tell: Tell = no_one,
    ) -> None:
        self._tell = tell
        self._streamed, self._image = streamed, checkpoint.tokens["image"]
        self.seen = {} if seen is None else seen
        self._now = threading.local()
        self._typed = checkpoint.spec.typed_tokens
        inner = streamed.model.model
        # Not the function that an earlier reference put in its place.
        self._encode = partial(type(inner).get_image_features, inner)
        inner.get_image_features = self._see
        if keeps_states:
            blocks = streamed.model.get_submodule(checkpoint.modules.blocks)
            # DeepStack is added after a block returns, so a block's states are what the next module is given.
            for module in (*blocks[1:], final_norm(checkpoint.modules, streamed.model)):
                module.register_forward_pre_hook(self._keep)

    def read(self, cases: Sequence[Case], answers: Sequence[Sequence[int]]) -> list[Sample]:
        """Read an answer to each case: all of them in one pass over the weights, each in one pass over its tokens."""
        pairs = list(zip(cases, answers, strict=True))
        return self._streamed.run_together([partial(self._read, *pair) for pair in pairs], self._tell)

    def _read(self, case: Case, answer: Sequence[int]) -> Sample:
        self._now.case, self._now.states = id(case), []
        given = partial(torch.as_tensor, device=self._streamed.device)
        self._now.watched = given(watched(len(case.token_ids), len(answer) - 1))
        ids = given(np.concatenate([case.token_ids, np.array(answer[:-1], np.int64)]))[None]
        result = self._streamed.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **({"mm_token_type_ids": (ids == self._image).int()} if self._typed else {}),
            **{name: given(array) for name, array in case.arrays.items()},
            use_cache=False,
            logits_to_keep=len(answer),
        )
        seen = self.seen[id(case)]
        # DeepStack has one entry a layer; most models have none.
        features = [flat(part) for part in (seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ()))]
        states = np.stack(self._now.states) if self._now.states else None
        told = tuple(to_numpy(part) for part in features)
        return Sample(case, told, to_numpy(result.logits[0]), list(answer), states)

    def _keep(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """Keep the watched tokens' states [W, H] of the ones that a module is given."""
        self._now.states.append(to_numpy(inputs[0][0, self._now.watched]))

    def _see(self, *args: Any, **kwargs: Any) -> Any:
        """The model's image features; they are kept, and given as a copy because models put results of their own in."""
        case = self._now.case
        if case not in self.seen:
            self.seen[case] = self._encode(*args, **kwargs)
        return type(self.seen[case])(**self.seen[case])


def flat(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Features [image tokens, H], however a model has grouped them by picture or tile."""
    parts = [features] if isinstance(features, torch.Tensor) else features
    return torch.cat([part.flatten(end_dim=-2) for part in parts])
