"""One export, whatever its format: what is read, the vision encoder, the self-check, the manifest's fields."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgetune_core.generation import GENERATION_CONFIG, copy_generation_config
from edgetune_core.progress import Tell, no_one
from edgetune_core.weightset import WeightSet
from edgetune_export import describe
from edgetune_export.check.answers import Open
from edgetune_export.check.exact import Decoder
from edgetune_export.check.reference import Case, Cases, generated_cases, record_cases
from edgetune_export.check.run import SelfCheck
from edgetune_export.checkpoint import COPIED, OpenCheckpoint, open_checkpoint
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.grammar import answer_grammar
from edgetune_export.hf_checkpoint import write_json
from edgetune_export.settings import ExportSettings
from edgetune_export.vision.int8 import Seen
from edgetune_runtime.constrained.automaton import Automaton
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.config import read_preprocessor
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import sha256_tree
from edgetune_runtime.tokens import TextTokenizer

FAST_RECORDS = 2
"""How many calibration records a fast self-check asks about."""

OPENING = ("load",)
"""Steps that `open` reports, before an exporter's own."""


@dataclass(frozen=True)
class ExportJob:
    """What an exporter works with; it writes into `work` and returns the manifest's "result".

    Attributes:
        work: existing empty folder.
        options: what to write.
        weights: the weight set to write from, or None to round to nearest.
        checkpoint: the merged checkpoint.
        decoder: its decoder, with the weight set's values.
        grammar: of its answers, or why they have none.
        cases: what the self-check asks.
        progress: called with the name of each step as it starts.
        tell: called with how much of a step is done and how much there is of it.
    """

    work: Path
    options: ExportSettings
    weights: WeightSet | None
    checkpoint: OpenCheckpoint
    decoder: DecoderWeights
    grammar: Automaton | str
    cases: Cases
    progress: Callable[[str], object]
    tell: Tell

    @classmethod
    def open(
        cls,
        folder: Path,
        work: Path,
        options: ExportSettings,
        *,
        weights: WeightSet | None = None,
        progress: Callable[[str], object] = lambda step: None,
        tell: Tell = no_one,
    ) -> ExportJob:
        """Open a merged checkpoint.

        Raises:
            InputError: the checkpoint, the options or the weight set cannot be exported.
        """
        options.check_weights(weights)
        progress("load")
        checkpoint = open_checkpoint(folder, device=options.device)
        checkpoint = replace(checkpoint, spec=_bounded(checkpoint.spec, options, folder))
        if checkpoint.quantized is not None:
            weights = _own_weights(checkpoint.quantized, weights)
            options.check_weights(weights)
        if weights is not None:
            _check_origin(weights, folder)
            options = _best_vision(options, weights)
        longest = describe.limits(checkpoint, options.max_length)["max_length"]
        decoder = DecoderWeights(
            checkpoint.model,
            checkpoint.modules,
            layers_format=options.block_format(options.precision) if weights is None else None,
            head_format=options.block_format(options.head, weights),
            weights=weights,
            values=checkpoint.streamed.values,
            device=options.device,
        )
        asked = None if options.check == "none" else weights
        records, source = ([], "") if asked is None else record_cases(checkpoint, asked, longest)
        records = records[: FAST_RECORDS if options.check == "fast" else None]
        cases = Cases(_fitting(generated_cases(checkpoint), longest), records, source)
        grammar = _grammar(checkpoint)
        return cls(work, options, weights, checkpoint, decoder, grammar, cases, progress, tell)

    @property
    def answer_tokens(self) -> list[int]:
        """The tokens that answers are made of; none where there is no grammar of them."""
        return [] if isinstance(self.grammar, str) else self.grammar.tokens.tolist()

    @property
    def rounds(self) -> bool:
        """Whether the decoder's weights are written in blocks."""
        return self.weights is not None or "int" in self.options.precision + self.options.head

    @property
    def seen(self) -> Seen:
        """The model's tower, with the generated pictures to try it on."""
        model, modules = self.checkpoint.model, self.checkpoint.modules
        given = partial(torch.as_tensor, device=self.checkpoint.streamed.device)
        images = [{name: given(array) for name, array in case.arrays.items()} for case in self.cases.pictures]
        blocks = modules.vision_blocks.removeprefix(f"{modules.vision_root}.")
        return Seen(model.get_submodule(modules.vision_root), blocks, model.get_image_features, images)

    def vision_ranges(self, missing: str, otherwise: str) -> dict[str, Mapping[str, float]]:
        """What calibration saw of the input of each layer of the tower, by the name of its weight in the graph.

        Args:
            missing: what is said where there is none.
            otherwise: a precision of the tower that does without.

        Raises:
            InputError: there is no weight set, or it has none.
        """
        told = None if self.weights is None else self.weights.fields.get("vision_ranges")
        if not told:
            raise InputError(
                missing,
                hint=f"give a weight set of edgetune calibrate, or choose --vision-precision {otherwise}",
            )
        root = self.checkpoint.modules.vision_root
        return {f"tower.{name.removeprefix(root + '.')}.weight": span for name, span in told.items()}

    def copy_files(self) -> None:
        """Copy what other loaders of the checkpoint look for."""
        for name in COPIED:
            if (self.checkpoint.folder / name).is_file():
                copy = copy_generation_config if name == GENERATION_CONFIG else shutil.copyfile
                copy(self.checkpoint.folder / name, self.work / name)
        if (self.options.min_pixels, self.options.max_pixels) != (None, None):
            spec = self.checkpoint.spec
            assert isinstance(spec, ImageSpec)
            bound_pixels(self.work, spec)
        if self.checkpoint.quantized is not None:  # the tensors that it describes do not come along
            config = {key: value for key, value in self.checkpoint.config.items() if key != "quantization_config"}
            write_json(self.work / "config.json", config)

    def check(self, load: Open, exact: Callable[[], Decoder]) -> dict[str, Any]:
        """Compare what was written with transformers.

        Args:
            load: loads the bundle as it will be used.
            exact: loads the same decoder with activations that are not rounded, by `for_every_step`.

        Returns:
            The manifest's "parity".

        Raises:
            ParityError: the bundle is worse than rounding explains, or its weights are not those that were to be
                written.
        """
        self.progress("parity")
        if self.options.check == "none":
            return {"check": "none"}
        check = SelfCheck(self.checkpoint, self.decoder, self.weights, self.options, self.cases, self.rounds, self.tell)
        return check.run(load, exact)

    def result(
        self, format_: str, files: Mapping[str, str], measured: Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        """The manifest's "result" of a bundle with these files by role; `more` are fields of the format's own."""
        common = describe.describe(self.checkpoint, self.decoder.spec, self.options, self.weights)
        grammar = {"problem": self.grammar} if isinstance(self.grammar, str) else self.grammar.to_dict()
        common["grammar"] = grammar
        return {"bundle": {"format": format_, **common, **more, "files": dict(files), "parity": dict(measured)}}


def _grammar(checkpoint: OpenCheckpoint) -> Automaton | str:
    """The grammar of a checkpoint's answers over its tokenizer's tokens, or why there is none."""
    family, tokenizer = checkpoint.family, TextTokenizer(checkpoint.folder / "tokenizer.json")
    try:
        return answer_grammar(tokenizer, family.chat, family.box_format, checkpoint.spec)
    except InputError as error:  # answers are then free
        return str(error)


def _fitting(cases: list[Case], longest: int) -> list[Case]:
    """Those that a bundle of this length can be asked."""
    fitting = [case for case in cases if len(case.token_ids) + case.new_tokens <= longest]
    if not fitting:
        least = min(len(case.token_ids) + case.new_tokens for case in cases)
        raise InputError(
            f"max length {longest} leaves no room for a picture: a small one takes {least} tokens with its question",
            hint=f"choose at least {least}",
        )
    return fitting


def _bounded(spec: Preprocessing, options: ExportSettings, folder: Path) -> Preprocessing:
    """The preprocessing with the limits that were asked for."""
    if (options.min_pixels, options.max_pixels) == (None, None):
        return spec
    if not isinstance(spec, ImageSpec):
        raise InputError(
            f"{folder}: --min-pixels and --max-pixels are limits of smart resize, and pictures are prepared by "
            f"{spec.rule!r}",
            hint="leave them out",
        )
    return spec.bounded(options.min_pixels, options.max_pixels)


def bound_pixels(folder: Path, spec: ImageSpec) -> None:
    """Write a rule's limits of pictures into a folder's preprocessor config, in both spellings that are read."""
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    _add_preprocessing(folder, {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels, "size": size})


def spell_out_steps(folder: Path, spec: Preprocessing) -> None:
    """Write the steps of smart resize that published preprocessor configs leave to their class into a folder's.

    transformers.js does none that is not asked for: it would neither normalise a picture nor, where there is no "size",
    resize it.
    """
    if not isinstance(spec, ImageSpec):
        return
    steps = dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True)
    _add_preprocessing(folder, {**steps, "rescale_factor": spec.rescale, "resample": spec.resample})


def _add_preprocessing(folder: Path, fields: dict[str, Any]) -> None:
    path, _ = read_preprocessor(folder)
    told = read_json(path)
    config = told["image_processor"] if path.name == "processor_config.json" else told
    config |= fields
    write_json(path, told)


def _best_vision(options: ExportSettings, weights: WeightSet) -> ExportSettings:
    """With static products where OpenVINO is to encode pictures and the weight set tells their scales.

    Of all precisions OpenVINO is fastest in this one: on a Xeon with AMX it took 0.8 of bfloat16's time.
    """
    open_choice = options.target == "openvino" and options.vision_precision is None and options.vision == "int8"
    return (
        replace(options, vision_precision="int8-static") if open_choice and weights.fields["vision_ranges"] else options
    )


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
