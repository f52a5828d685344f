"""The self-check of an export, from the questions to what its manifest tells."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np

from edgetune_core.progress import Tell, no_one
from edgetune_core.weightset import WeightSet
from edgetune_export.check import drift, parity
from edgetune_export.check.answers import PASSES, Answers, Open, own_answers
from edgetune_export.check.exact import Decoder, read_answer
from edgetune_export.check.reference import Cases, Reference, Sample
from edgetune_export.checkpoint import OpenCheckpoint
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.dequantize import written
from edgetune_export.settings import ExportSettings
from edgetune_runtime.backends import ImageFeatures


class SelfCheck:
    """Compares what was written with transformers.

    One thing is in memory at a time: the export, a block of the reference, or the written decoder.

    Args:
        checkpoint: what was exported.
        decoder: its decoder as it was written.
        weights: the weight set it was written from.
        options: of the export.
        cases: the questions.
        tell: called while the reference reads, with the number of a layer and how many there are.
    """

    def __init__(
        self,
        checkpoint: OpenCheckpoint,
        decoder: DecoderWeights,
        weights: WeightSet | None,
        options: ExportSettings,
        cases: Cases,
        tell: Tell = no_one,
    ) -> None:
        self._checkpoint, self._decoder, self._weights = checkpoint, decoder, weights
        self._options, self._cases, self._tell = options, cases, tell
        self._answers = Answers(checkpoint)

    def run(self, load: Open, exact: Callable[[], Decoder] | None) -> dict[str, Any]:
        """Ask, and compare.

        Args:
            load: the bundle as it will be used.
            exact: the same weights with activations that are not rounded; None where nothing was rounded.

        Returns:
            The manifest's "parity".

        Raises:
            ParityError: the bundle is worse than rounding explains, or its weights are not those that were to be
                written.
        """
        pictures, records = self._cases.pictures, self._cases.records
        asked = [*pictures, *records]
        with closing(load()) as shipped:
            own = [self._answers.ask(shipped, case) for case in asked]
            arrays = [case.pixels.arrays for case in pictures]
            packed = shipped.encode_images({name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]})
        reference = Reference(self._checkpoint.streamed, self._checkpoint, tell=self._tell)
        theirs = reference.read(asked, [sample.tokens for sample in own])
        count = len(pictures)
        measured = parity.measure(own[:count], theirs[:count], packed)
        parity.require(measured, self._options)
        told = {"check": self._options.check, **measured.to_dict()}
        if self._weights is not None:
            first = count if records else 0  # without records the generated pictures stand in for them
            theirs[first:], told["drift"] = self._drift(reference, load, own[first:], theirs[first:])
        if exact is not None:
            told["exact"] = asdict(self._exact(exact(), reference, theirs))
        return told

    def _drift(
        self, reference: Reference, load: Open, own: list[Sample], theirs: list[Sample]
    ) -> tuple[list[Sample], dict[str, Any]]:
        """What the merged model makes of its own answers, and how far the export is from them."""
        passes = PASSES if self._options.check == "full" else 1
        ours, theirs = own_answers(self._answers, reference, load, own, theirs, passes)
        source = self._cases.source if self._cases.records else f"generated pictures: {self._cases.source}"
        moved = drift.measure_drift(self._answers, own, ours, theirs, source)
        drift.require_close(moved)
        return theirs, moved.to_dict()

    def _exact(self, decoder: Decoder, merged: Reference, samples: list[Sample]) -> drift.Exactness:
        """The written weights against the model that has them dequantized, along the answers of the merged one."""
        model = written(self._checkpoint.streamed, self._checkpoint.modules, self._decoder, self._weights)
        reference = Reference(model, self._checkpoint, merged.seen, tell=self._tell)
        read = reference.read([sample.case for sample in samples], [sample.tokens for sample in samples])
        logits = []
        for sample in read:
            prompt = self._answers.prompt(sample.case, ImageFeatures(sample.features[0], sample.features[1:]))
            logits.append(read_answer(decoder, self._decoder.embedded, prompt, sample.tokens))
        exact = drift.measure_exact(self._answers, read, logits)
        drift.require_exact(exact, half=self._options.half)
        return exact
