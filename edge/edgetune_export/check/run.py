"""The self-check of an export, from the questions to what its manifest tells."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

from edgetune_core.progress import Tell, no_one
from edgetune_core.weightset import WeightSet
from edgetune_export.check import blocks, drift, parity
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
        rounds: whether the decoder was rounded, so that it has to equal the checkpoint with its own weights.
        tell: called while the reference reads, with the number of a layer and how many there are.
    """

    def __init__(
        self,
        checkpoint: OpenCheckpoint,
        decoder: DecoderWeights,
        weights: WeightSet | None,
        options: ExportSettings,
        cases: Cases,
        rounds: bool,
        tell: Tell = no_one,
    ) -> None:
        self._checkpoint, self._decoder, self._weights = checkpoint, decoder, weights
        self._options, self._cases, self._rounds, self._tell = options, cases, rounds, tell
        self._answers = Answers(checkpoint)

    def run(self, load: Open, exact: Callable[[], Decoder]) -> dict[str, Any]:
        """Ask, and compare: first block by block, so that a mistake is named where it is.

        Args:
            load: the bundle as it will be used.
            exact: the same weights with activations that are not rounded.

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
            packed = self._answers.encode(shipped, pictures)
        keeps = not self._rounds
        reference = Reference(self._checkpoint.streamed, self._checkpoint, keeps_states=keeps, tell=self._tell)
        theirs = reference.read(asked, [sample.tokens for sample in own])
        count = len(pictures)
        measured = parity.measure(own[:count], theirs[:count], packed)
        told = {"check": self._options.check, **measured.to_dict()}
        moved = None
        if self._weights is not None:
            first = count if records else 0  # without records the generated pictures stand in for them
            theirs[first:], moved = self._drift(reference, load, own[first:], theirs[first:])
            told["drift"] = moved.to_dict()
        told |= self._compare_written(exact(), reference, theirs)
        parity.require(measured, self._options)
        if moved is not None:
            drift.require_close(moved)
        return told

    def _drift(
        self, reference: Reference, load: Open, own: list[Sample], theirs: list[Sample]
    ) -> tuple[list[Sample], drift.Drift]:
        """What the merged model makes of its own answers, and how far the export is from them."""
        passes = PASSES if self._options.check == "full" else 1
        ours, theirs = own_answers(self._answers, reference, load, own, theirs, passes)
        source = self._cases.source if self._cases.records else f"generated pictures: {self._cases.source}"
        return theirs, drift.measure_drift(self._answers, own, ours, theirs, source)

    def _compare_written(self, decoder: Decoder, merged: Reference, samples: list[Sample]) -> dict[str, Any]:
        """The written decoder beside the model with its weights, along some answers: "blocks", if it rounds "exact"."""
        if self._rounds:
            model = written(self._checkpoint.streamed, self._checkpoint.modules, self._decoder, self._weights)
            reference = Reference(model, self._checkpoint, merged.seen, keeps_states=True, tell=self._tell)
            samples = reference.read([sample.case for sample in samples], [sample.tokens for sample in samples])
        logits, states = [], []
        for sample in samples:
            prompt = self._answers.prompt(sample.case, ImageFeatures(sample.features[0], sample.features[1:]))
            rows, hidden = read_answer(decoder, self._decoder.embedded, prompt, sample.tokens)
            logits.append(rows)
            states.append(hidden)
        errors = blocks.compare(states, [sample.states for sample in samples if sample.states is not None])
        errors.require(half=decoder.half)
        if not self._rounds:
            return {"blocks": errors.to_dict()}
        exact = drift.measure_exact(self._answers, samples, logits)
        drift.require_exact(exact, half=decoder.half)
        return {"blocks": errors.to_dict(), "exact": asdict(exact)}
