"""One export, whatever its format: what is read, the vision encoder, the self-check, the manifest's fields."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgetune_core.generation import GENERATION_CONFIG, copy_generation_config
from edgetune_core.weightset import WeightSet
from edgetune_export import describe
from edgetune_export.check import drift, parity
from edgetune_export.check.reference import Sample, generated_cases, record_cases, run_reference
from edgetune_export.checkpoint import COPIED, LoadedCheckpoint, load_checkpoint
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.dequantize import apply_rounding, apply_weights
from edgetune_export.hf_checkpoint import write_json
from edgetune_export.settings import ExportSettings
from edgetune_runtime.backends import Backend
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.config import read_preprocessor
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import sha256_tree

OPENING = ("load", "reference")
"""Steps that `open` reports, before an exporter's own."""


@dataclass(frozen=True)
class ExportJob:
    """What an exporter works with; it writes into `work` and returns the manifest's "result".

    Attributes:
        work: existing empty folder.
        options: what to write.
        weights: the weight set to write from, or None to round to nearest.
        checkpoint: the merged checkpoint, loaded. `check` puts the written weights into its model.
        decoder: its decoder, with the weight set's values.
        pictures: what the merged model makes of generated pictures.
        records: and of some calibration records; empty without a weight set or when they are gone.
        source: where the records come from, or why there are none.
        progress: called with the name of each step as it starts.
    """

    work: Path
    options: ExportSettings
    weights: WeightSet | None
    checkpoint: LoadedCheckpoint
    decoder: DecoderWeights
    pictures: list[Sample]
    records: list[Sample]
    source: str
    progress: Callable[[str], object]

    @classmethod
    def open(
        cls,
        folder: Path,
        work: Path,
        options: ExportSettings,
        *,
        weights: WeightSet | None = None,
        progress: Callable[[str], object] = lambda step: None,
    ) -> ExportJob:
        """Load a merged checkpoint and run the reference.

        Raises:
            InputError: the checkpoint, the options or the weight set cannot be exported.
        """
        options.check_weights(weights)
        progress("load")
        checkpoint = load_checkpoint(folder)
        spec = checkpoint.spec.bounded(options.min_pixels, options.max_pixels)
        checkpoint = replace(checkpoint, spec=spec)
        if checkpoint.quantized is not None:
            weights = _own_weights(checkpoint.quantized, weights)
            options.check_weights(weights)
        if weights is not None:
            _check_origin(weights, folder)
        longest = describe.limits(checkpoint, options.max_length)["max_length"]
        decoder = DecoderWeights(
            checkpoint.model,
            layers_format=options.block_format(options.precision) if weights is None else None,
            head_format=options.block_format(options.head),
            weights=weights,
        )
        progress("reference")
        pictures = [run_reference(checkpoint, case) for case in generated_cases(checkpoint)]
        cases, source = ([], "") if weights is None else record_cases(checkpoint, weights, longest)
        records = [run_reference(checkpoint, case) for case in cases]
        return cls(work, options, weights, checkpoint, decoder, pictures, records, source, progress)

    @property
    def rounds(self) -> bool:
        """Whether the decoder's weights are written in blocks."""
        return self.weights is not None or "int" in self.options.precision + self.options.head

    def copy_files(self) -> None:
        """Copy what other loaders of the checkpoint look for."""
        for name in COPIED:
            if (self.checkpoint.folder / name).is_file():
                copy = copy_generation_config if name == GENERATION_CONFIG else shutil.copyfile
                copy(self.checkpoint.folder / name, self.work / name)
        if (self.options.min_pixels, self.options.max_pixels) != (None, None):
            bound_pixels(self.work, self.checkpoint.spec)
        if self.checkpoint.quantized is not None:  # the tensors that it describes do not come along
            config = {key: value for key, value in self.checkpoint.config.items() if key != "quantization_config"}
            write_json(self.work / "config.json", config)

    def check(self, shipped: Backend, exact: Backend | None) -> dict[str, Any]:
        """Compare what was written with transformers; the last thing to do, for it changes the checkpoint's model.

        Args:
            shipped: the bundle as it will be used.
            exact: the same weights with activations that are not rounded, where `rounds`.

        Returns:
            The manifest's "parity".

        Raises:
            ParityError: the bundle is worse than rounding explains, or its weights are not those that were to be
                written.
        """
        self.progress("parity")
        tokens, spec = self.checkpoint.tokens, self.checkpoint.spec
        measured = parity.measure(self.pictures, shipped, image_token=tokens["image"], merge_size=spec.merge_size)
        parity.require(measured, self.options)
        told = measured.to_dict()
        if self.weights is not None:
            source = self.source if self.records else f"generated pictures: {self.source}"
            moved = drift.measure_drift(self.checkpoint, self.records or self.pictures, shipped, source)
            drift.require_close(moved)
            told["drift"] = moved.to_dict()
        if self.rounds:
            assert exact is not None
            told["exact"] = asdict(self._check_exact(exact))
        return told

    def _check_exact(self, backend: Backend) -> drift.Exactness:
        """Against the model with the written weights."""
        table = self.decoder.embedding().copy()
        model = self.checkpoint.model
        apply_rounding(model, self.decoder)
        if self.weights is not None:
            apply_weights(model, self.weights)
        samples = [run_reference(self.checkpoint, sample.case) for sample in (*self.pictures, *self.records)]
        exact = drift.measure_exact(self.checkpoint, samples, backend, table)
        drift.require_exact(exact, half=self.options.half)
        return exact

    def result(
        self, format_: str, files: Mapping[str, str], measured: Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        """The manifest's "result" of a bundle with these files by role; `more` are fields of the format's own."""
        common = describe.describe(self.checkpoint, self.decoder.spec, self.options, self.weights)
        return {"bundle": {"format": format_, **common, **more, "files": dict(files), "parity": dict(measured)}}


def bound_pixels(folder: Path, spec: ImageSpec) -> None:
    """Write a rule's limits of pictures into a folder's preprocessor config, in both spellings that are read."""
    path, _ = read_preprocessor(folder)
    told = read_json(path)
    config = told["image_processor"] if path.name == "processor_config.json" else told
    config |= {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels}
    config["size"] = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    write_json(path, told)


def _own_weights(own: WeightSet, given: WeightSet | None) -> WeightSet:
    """The values of a checkpoint that is quantized already."""
    if given is not None:
        raise InputError(
            f"{own.folder}: is quantized already, and {given.folder} is a weight set",
            hint="leave --weights out, or give the checkpoint that it was calibrated from",
        )
    return own


def _check_origin(weights: WeightSet, folder: Path) -> None:
    """Refuse a weight set of another checkpoint: its codes would fit, and mean nothing."""
    told = weights.fields["checkpoint"]
    if told["sha256"] != sha256_tree(folder):
        raise InputError(
            f"{weights.folder}: calibrated from another checkpoint than {folder} (from {told['path']})",
            hint="give the checkpoint that it was calibrated from, or calibrate again",
        )
