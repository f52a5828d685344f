"""What an export makes of the self-check's cases: its greedy answers, and the words that a reference put in its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from edgetune_export.check.reference import Case, Float, Reference, Sample
from edgetune_export.checkpoint import OpenCheckpoint
from edgetune_runtime.backends import Backend, ImageFeatures
from edgetune_runtime.codec.grounding import ParsedAnswer, parse
from edgetune_runtime.decode import Prompt, prefill, step
from edgetune_runtime.rope import prompt_positions
from edgetune_runtime.tokens import TextTokenizer

Open = Callable[[], Backend]
"""Loads an export; whoever calls it closes it."""

PASSES = 4
"""How often the merged model may correct an answer before it counts as another one."""


class Answers:
    """Asks exports, and reads answers.

    Args:
        checkpoint: what they were exported from.
    """

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = TextTokenizer(checkpoint.folder / "tokenizer.json")
        # One that writes the image token ends there too: a reference that reads it again takes it for a picture.
        self._stop = frozenset({*checkpoint.tokens["eos"], checkpoint.tokens["image"]})

    def prompt(self, case: Case, image: ImageFeatures) -> Prompt:
        """What the decode loop reads for a case about these image features."""
        token, grids = self._checkpoint.tokens["image"], case.arrays.get("image_grid_thw")
        positions, following = prompt_positions(case.token_ids, self._checkpoint.spec, grids, image_token=token)
        return Prompt(case.token_ids, positions, following, token, image)

    def ask(self, backend: Backend, case: Case) -> Sample:
        """A backend's greedy answer to a case."""
        image = self.encode(backend, [case])
        return self.go_on(backend, case, (image.embeddings, *image.deepstack), [])

    def encode(self, backend: Backend, cases: Sequence[Case]) -> ImageFeatures:
        """What a backend's vision encoder makes of the pictures of cases, in one call."""
        raw = backend.shape.raw_pixels
        pictures = [arrays for case in cases for arrays in (case.raw if raw else case.images)]
        return backend.encode_images(self._checkpoint.spec.encoder_arrays(pictures))

    def go_on(self, backend: Backend, case: Case, features: tuple[Float, ...], words: Sequence[int]) -> Sample:
        """Its answer that begins with given tokens, about image features that it has encoded."""
        prompt = self.prompt(case, ImageFeatures(features[0], features[1:]))
        tokens: list[int] = []
        rows = [prefill(backend, prompt, room=case.new_tokens).copy()]
        while True:
            count = len(tokens)
            tokens.append(words[count] if count < len(words) else int(rows[-1].argmax()))
            if tokens[-1] in self._stop or len(tokens) == case.new_tokens:
                return Sample(case, features, np.stack(rows), tokens)
            rows.append(step(backend, tokens[-1], prompt.next_position + count).copy())

    def read(self, case: Case, tokens: Sequence[int]) -> ParsedAnswer:
        """The boxes in an answer."""
        text = self._tokenizer.decode([token for token in tokens if token not in self._stop], keep_control=True)
        return parse(text, case.geometry, self._checkpoint.family.box_format)


def choices(sample: Sample) -> list[int]:
    """The most likely token at each step of an answer."""
    return [int(token) for token in sample.logits.argmax(-1)]


def own_answers(
    answers: Answers, reference: Reference, load: Open, ours: Sequence[Sample], theirs: Sequence[Sample], passes: int
) -> tuple[list[Sample], list[Sample]]:
    """The reference's own greedy answers, found by correcting an export's.

    Where the reference would have gone on otherwise, its token takes the place of the answer's, the export goes on from
    there, and the reference reads that. Each pass reads its weights once for all answers, where generating would read
    them once for each token.

    Args:
        answers: asks the export.
        reference: reads.
        load: the export.
        ours: its answers.
        theirs: what the reference made of them.
        passes: how often it may read, the first time included.

    Returns:
        What the export and what the reference makes of the reference's answers. One that needs more passes is left as
        it is: the reference chooses another token somewhere along it.
    """
    ours, theirs = list(ours), list(theirs)
    for _ in range(passes - 1):
        differing = [number for number, sample in enumerate(theirs) if choices(sample) != sample.tokens]
        if not differing:
            break
        with closing(load()) as backend:
            for number in differing:
                words = corrected(theirs[number])
                ours[number] = answers.go_on(backend, ours[number].case, ours[number].features, words)
        read = reference.read([ours[n].case for n in differing], [ours[n].tokens for n in differing])
        for number, sample in zip(differing, read, strict=True):
            theirs[number] = sample
    return ours, theirs


def corrected(sample: Sample) -> list[int]:
    """An answer up to the first token that is not the most likely one, which takes its place."""
    chosen = choices(sample)
    first = next(step for step, token in enumerate(sample.tokens) if token != chosen[step])
    return chosen[: first + 1]
