"""A round of `edgetune label --learn`: what people decided becomes an adapter and a bundle, which proposes again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from edgetune.api.calibrate import CalibrateOptions, calibrate
from edgetune.api.chain import Step, run_chain
from edgetune.api.export import export
from edgetune.api.label import Asking, LabelOptions, label
from edgetune.api.merge import merge
from edgetune.api.train import TrainOptions, train
from edgetune_core.option_files import read_options
from edgetune_core.options import Options
from edgetune_core.stage import StageResult, check_input, run_stage
from edgetune_export.formats import CHECKPOINTS
from edgetune_export.settings import ExportSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import MANIFEST, read_manifest

log = logging.getLogger("edgetune")

ROUND = "proposals"
"""Folder of the proposals among those of the steps."""
_CHAIN = "edgetune label chooses it, leave it out"
_APART = dict.fromkeys(
    ("checkpoint", "data", "evaluation", "output", "limit", "stages", "force", "dry_run", "allow_overlap"), _CHAIN
)


def learn(options: LabelOptions) -> StageResult:
    """Train on what people made of proposals, and propose for the rest: a chain of stages, each a folder.

    Raises:
        InputError: the output is a result itself, or a corrected record or an option cannot be used.
        EdgetuneError: a step failed.
    """
    if (options.output / MANIFEST).is_file():
        raise InputError(f"{options.output}: is a bundle or another result itself", hint="choose another --output")
    for role, path in (("bundle", options.bundle), ("checkpoint", options.checkpoint)):
        assert path is not None
        check_input(path, role)
    stage = run_chain(_steps(options), dry_run=options.dry_run)
    return stage or StageResult(options.output / ROUND, {}, False, dry_run=True)


def _steps(options: LabelOptions) -> Iterator[Step]:
    """Yield the steps of a round. What loads a model is a process of its own, whose memory goes with it."""
    from edgetune_runtime.bench.targets import is_bundle

    output, base = options.output, options.checkpoint
    corrected, adapter, merged, weights = (output / name for name in ("corrected", "adapter", "merged", "weights"))
    bundle = output / "bundle"

    def step(title: str, function: Callable[..., Any], **values: Any) -> Step:
        return Step.of(title, function, values | {"force": options.force})

    yield Step("Read what people decided", "", lambda: _correct(options, corrected))
    training = _from_file(options.training, TrainOptions)
    yield step("Train an adapter on it", train, checkpoint=base, data=corrected, output=adapter, **training)
    yield step("Merge the adapter into the base", merge, checkpoint=base, adapter=adapter, output=merged)
    proposer = merged
    if is_bundle(options.bundle):
        proposer = bundle
        manifest = read_manifest(options.bundle)
        source = {}
        if "weights" in manifest.get("inputs", {}):
            solving = _from_file(options.calibration, CalibrateOptions)
            yield step(
                "Solve weights on what people decided",
                calibrate,
                checkpoint=merged,
                data=corrected,
                output=weights,
                **solving,
            )
            source = {"weights": weights}
        yield step(
            f"Export a bundle as {options.bundle} is",
            export,
            checkpoint=merged,
            **source,
            output=bundle,
            **_as_before(manifest["settings"]),
        )
    asking: Mapping[str, Any] = vars(options.narrow(Asking))
    yield step(
        "Propose for the pictures that are not labelled",
        label,
        folder=options.folder,
        phrases=options.phrases,
        bundle=proposer,
        output=output / ROUND,
        labelled=(corrected,),
        **{name: value for name, value in asking.items() if name != "image_root" and value is not None},
    )


def _as_before(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of export that give a bundle its settings, which its manifest has with defaults resolved."""
    found = {item.name: settings[item.name] for item in fields(ExportSettings) if item.name in settings}
    if settings["format"] not in CHECKPOINTS:
        del found["names"]
    elif list(settings["purposes"]) == ["server"]:
        del found["vision_precision"]
    return {"format": settings["format"], **found}


def _correct(options: LabelOptions, output: Path) -> StageResult:
    """Write what people decided, of all files, as one data set."""
    from edgetune_data.labelling import corrections
    from edgetune_data.manifest import hash_files, set_hash
    from edgetune_data.read import pictures_of, stage_inputs

    settings = [
        corrections.read_settings(path, options.folder, options.phrases, options.image_root) for path in options.learn
    ]
    records, files, notes = corrections.collect(options.learn, settings)
    for note, count in notes.items():
        log.info(f"{note}: {count}")
    images = hash_files(Path(name) for value in records for name in pictures_of(value))
    inputs: dict[str, Path] = {}
    for number, path in enumerate(options.learn, start=1):
        inputs |= stage_inputs(f"corrected {number}", path)
    return run_stage(
        "label-corrected",
        output,
        inputs=inputs,
        settings={
            "phrases": options.phrases,
            "image_root": options.image_root,
            "images_sha256": set_hash(images),
        },
        build=lambda work: corrections.write(records, files, work),
        force=options.force,
    )


def _from_file(path: Path | None, kind: type[Options]) -> dict[str, Any]:
    return {} if path is None else read_options(path, kind, _APART)
