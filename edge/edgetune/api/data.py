"""`edgetune.data`: data sets of any known format are converted, checked, cropped, split and counted."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgetune_core.options import Options, StageOptions, option, takes
from edgetune_core.stage import StageResult, run_stage
from edgetune_data.settings import CheckLimits, CropRules, ReadSettings
from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from edgetune_data.check import Material, Report
    from edgetune_data.model_view import ModelView
    from edgetune_data.read import Item

log = logging.getLogger("edgetune")

GROUPS = "groups.jsonl"


@dataclass(frozen=True, kw_only=True)
class _ConvertPlaces(StageOptions):
    path: Path = option(help="File or folder of the data set.", argument=True)
    output: Path = option(help="Folder to write data.jsonl to.")
    format: str = option(
        "auto",
        help="Format of PATH, such as coco, yolo or csv (the page about edgetune data lists them), or one "
        "that another package adds; auto recognises it.",
        metavar="NAME",
    )
    copy_images: bool = option(False, help="Copy all pictures into the output folder.")
    on_error: Literal["stop", "report"] = option(
        "stop",
        help="What to do about a bad record: stop at the first, or leave all of them out and list them in "
        "rejected.jsonl (report).",
    )


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ReadSettings, _ConvertPlaces):
    """Options of `edgetune.data.convert`.

    Examples:
        >>> from edgetune import data
        >>> options = data.ConvertOptions(path="coco/instances.json", output="runs/data", on_error="report")
        >>> options.format, str(options.path)
        ('auto', 'coco/instances.json')
    """


@takes(ConvertOptions)
def convert(options: ConvertOptions) -> StageResult:
    """Write a data set of any known format as edgetune's own JSONL.

    Everything is read and checked before anything is written.

    Returns:
        The stage, whose facts are the number of `records`, the `format`, the remarks of reading (`notes`: text -> how
        often) and the `rejected` records.

    Raises:
        InputError: nothing can be read, or the first bad record unless they are reported.
    """
    from edgetune_data.convert import collect, write
    from edgetune_data.read import Reading

    settings = options.narrow(ReadSettings)
    reading = Reading(options.path, options.format, settings)
    converted = collect(reading, on_error=options.on_error)
    roles = ["data", *(f"data {number}" for number in range(2, len(reading.files) + 1))]
    chosen = dict(vars(settings))
    stage = run_stage(
        "data-convert",
        options.output,
        inputs=dict(zip(roles, reading.files, strict=True)),
        settings={
            "format": reading.format.name,
            "group_rows": chosen.pop("group"),
            "copy_images": options.copy_images,
            "on_error": options.on_error,
            "images_sha256": converted.images_sha256,
            **chosen,
        },
        build=lambda folder: write(converted, folder, copy_images=options.copy_images),
        force=options.force,
        dry_run=options.dry_run,
    )
    facts = {
        "records": len(converted.values),
        "format": reading.format.name,
        "notes": dict(reading.notes),
        "rejected": converted.rejected,
    }
    return replace(stage, facts=facts)


@dataclass(frozen=True, kw_only=True)
class _ModelOptions(Options):
    checkpoint: Path | None = option(None, help="Hugging Face folder of the model that will be trained.")
    family: str | None = option(
        None, help="Model family, such as qwen3_vl, where there is no checkpoint yet.", metavar="NAME"
    )
    min_pixels: int | None = option(
        None, help="Smallest area of a resized picture in pixels, with --family.", minimum=1
    )
    max_pixels: int | None = option(None, help="Largest area of a resized picture in pixels, with --family.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = (self.min_pixels, self.max_pixels)
        if self.checkpoint and (self.family or limits != (None, None)):
            raise InputError("--checkpoint says the family and its limits; leave out the other options")
        if limits != (None, None) and not self.family:
            raise InputError("--min-pixels and --max-pixels need --family")

    def model(self) -> ModelView | None:
        """Return how the model sees, or None where no model was named."""
        from edgetune_data.model_view import ModelView

        if self.checkpoint:
            return ModelView.of_checkpoint(self.checkpoint)
        return ModelView.of_family(self.family, self.min_pixels, self.max_pixels) if self.family else None


@dataclass(frozen=True, kw_only=True)
class _CheckPlaces(_ModelOptions, StageOptions):
    data: Path = option(help="Records, in any format that data convert reads.", argument=True)
    against: tuple[Path, ...] = option(
        (), help="Another data file that must share no picture with this one, such as the validation split. Repeatable."
    )
    output: Path | None = option(None, help="Folder to write report.json, sheet.html and the cleaned copy of --fix to.")
    fixes: tuple[str, ...] = option(
        (),
        help="Also write a cleaned copy with these problems mended: unreadable, duplicates (both when no name"
        " is given), swap, clip, boxes, leaks, cover, private.",
        flag="--fix",
        metavar="[NAME,...]",
        commas=True,
        given="unreadable,duplicates",
    )
    redactors: tuple[str, ...] = option(
        (),
        help="Look for what must not be in pictures: faces, text, or what the redactor of another package "
        "finds. Repeatable.",
        flag="--redactor",
        metavar="NAME",
    )
    pictures: int = option(8, help="How many pictures of each rule sheet.html shows.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class CheckOptions(CheckLimits, _CheckPlaces):
    """Options of `edgetune.data.check`.

    Examples:
        >>> from edgetune import data
        >>> data.CheckOptions(data="train.jsonl", against=["val.jsonl"], family="qwen3_vl").pictures
        8
        >>> data.CheckOptions(data="train.jsonl", fixes=["clip"])
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --fix, --force and --dry-run need --output, the folder to write
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None and (self.fixes or self.force or self.dry_run):
            raise InputError("--fix, --force and --dry-run need --output, the folder to write")


@dataclass(frozen=True)
class Checked:
    """What `edgetune.data.check` found.

    Examples:
        >>> from edgetune import data
        >>> from edgetune_data.check import Report
        >>> found = data.Checked(report=Report("train.jsonl", records=8, images=3, findings=[]), after=None, stage=None)
        >>> found.report.errors, found.report.warnings
        (0, 0)

    Attributes:
        report: what is wrong with the data.
        after: what is left of it in the cleaned copy; None where none was asked for.
        stage: the folder that was written, if one was.
    """

    report: Report
    after: Report | None
    stage: StageResult | None


@takes(CheckOptions)
def check(options: CheckOptions) -> Checked:
    """Say what is wrong with a data set: all errors with file and line, and what trains badly.

    Raises:
        InputError: there is nothing to check, or a fix or redactor of this name does not exist.
    """
    from edgetune_data.check import check as examine
    from edgetune_data.check import gather
    from edgetune_data.check.fix import parse_fixes
    from edgetune_data.redactors import load_redactor

    fixes = parse_fixes(",".join(options.fixes)) if options.fixes else ()
    material = gather(
        options.data,
        model=options.model(),
        limits=options.narrow(CheckLimits),
        redactors={name: load_redactor(name) for name in options.redactors},
    )
    report = examine(material, options.against)
    if options.output is None:
        return Checked(report, None, None)
    return _write_check(options, options.output, material, report, fixes)


def _write_check(
    options: CheckOptions, output: Path, material: Material, report: Report, fixes: tuple[str, ...]
) -> Checked:
    from edgetune_data.check.folder import recheck, write

    others = {f"against {number}": path for number, path in enumerate(options.against, start=1)}
    chosen = {"fixes": fixes, "pictures": options.pictures, "redactors": options.redactors}
    stage = run_stage(
        "data-check",
        output,
        inputs={"data": material.path, **others},
        settings={**material.settings(), **chosen},
        build=lambda work: write(work, output, material, report, fixes, options.pictures),
        force=options.force,
        dry_run=options.dry_run,
    )
    return Checked(report, recheck(material, report, fixes, output, options.against) if fixes else None, stage)


@dataclass(frozen=True, kw_only=True)
class _CropPlaces(StageOptions):
    data: Path = option(help="Records, in any format that data convert reads.", argument=True)
    output: Path = option(help="Folder to write data.jsonl and images/ to.")
    around: Literal["record", "box", "picture"] = option(
        "record",
        help="A crop for each record (around all of its boxes), each box, or each picture (all boxes of all records).",
    )
    rest: Literal["keep", "drop"] = option("keep", help="Keep or drop records without boxes.")
    originals: bool = option(False, help="Also keep each record as it was, before its crops.")
    format: Literal["png", "jpeg"] = option("png", help="File format of the crops; png keeps every pixel.")


@dataclass(frozen=True, kw_only=True)
class CropOptions(CropRules, _CropPlaces):
    """Options of `edgetune.data.crop`.

    Examples:
        >>> from edgetune import data
        >>> data.CropOptions(data="train.jsonl", output="runs/crops", around="box").around
        'box'
        >>> data.CropOptions(data="train.jsonl", output="runs/crops", around="boxes")
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --around: 'boxes' is not one of record, box, picture
    """


@takes(CropOptions)
def crop(options: CropOptions) -> StageResult:
    """Cut pictures around their annotated objects and move the boxes along.

    Originals stay as they are; meta.origin of each record says where its crop comes from.

    Returns:
        The stage, whose facts count the `records`, those that were `cropped` and `dropped`, and the boxes that were
        `cut` and `left_out`.

    Raises:
        InputError: a record is bad, or none is left.
    """
    from edgetune_data.crop import beside_originals, plan, write
    from edgetune_data.manifest import hash_files, set_hash
    from edgetune_data.read import checked, image_sizes

    rules = options.narrow(CropRules)
    items = checked(options.data)
    cuts = plan(items, image_sizes(items), rules, options.around)
    kept = [cut for cut in cuts if cut.windows or options.rest == "keep"]
    if not kept:
        raise InputError(f"{options.data} has no record to crop and --rest drop leaves nothing")
    dropped = len(cuts) - len(kept)
    kept = beside_originals(kept) if options.originals else kept
    images = hash_files(dict.fromkeys(image for item in items for image in item.images))
    choices = {"around": options.around, "rest": options.rest, "originals": options.originals, "format": options.format}
    stage = run_stage(
        "data-crop",
        options.output,
        inputs=_files_of(items),
        settings={**choices, **vars(rules), "images_sha256": set_hash(images)},
        build=lambda work: write(kept, work, options.output, kind=options.format) | {"dropped": dropped},
        force=options.force,
        dry_run=options.dry_run,
    )
    notes = [note for cut in kept for note in cut.notes]
    left_out = sum(" left out:" in note for note in notes)
    facts = {
        "records": len(kept),
        "cropped": sum(bool(cut.windows) for cut in kept),
        "dropped": dropped,
        "cut": len(notes) - left_out,
        "left_out": left_out,
    }
    return replace(stage, facts=facts)


@dataclass(frozen=True, kw_only=True)
class SplitOptions(StageOptions):
    """Options of `edgetune.data.split`.

    Examples:
        >>> from edgetune import data
        >>> data.SplitOptions(data="all.jsonl", output="runs/split", ratios=[0.9, 0.1]).ratios
        (0.9, 0.1)
        >>> data.SplitOptions(data="all.jsonl", output="runs/split", ratios=[0.9, 0.2])
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --ratios: '0.9,0.2' must be two or three shares that add up to 1
    """

    data: Path = option(help="Records, in any format that data convert reads.", argument=True)
    output: Path = option(help="Folder to write train.jsonl, val.jsonl and test.jsonl to.")
    ratios: tuple[float, ...] = option(
        (0.8, 0.1, 0.1),
        help="Shares of the records in each split, two or three that add up to 1.",
        metavar="TRAIN,VAL[,TEST]",
        shown="0.8,0.1,0.1",
        minimum=0,
        maximum=1,
        below=True,
        commas=True,
        repeats=True,
    )
    near: int = option(
        6,
        help="Keep pictures together whose perceptual hashes differ in at most this many of 64 bits.",
        minimum=0,
        maximum=32,
    )
    group_by: str | None = option(
        None, help="Also keep records together that have the same value under this key of meta.", metavar="KEY"
    )
    seed: int = option(0, help="Random seed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ratios) not in (2, 3) or not math.isclose(sum(self.ratios), 1):
            shown = ",".join(f"{ratio:g}" for ratio in self.ratios)
            raise InputError(f"--ratios: '{shown}' must be two or three shares that add up to 1")


@takes(SplitOptions)
def split(options: SplitOptions) -> StageResult:
    """Split a data set by picture: near-duplicates and crops of one original stay together.

    Labels, absent objects, questions and conversations are shared out evenly.

    Returns:
        The stage, whose facts are the number of `records` and `groups`, and a `summary`: a row for each split.

    Raises:
        InputError: a record is bad, or there are too few.
    """
    from edgetune_data.manifest import hash_files, set_hash
    from edgetune_data.read import checked
    from edgetune_data.split import divide, grouped, summary, write

    items = checked(options.data)
    groups = grouped(items, options.near, options.group_by)
    divided = divide(groups, options.ratios, options.seed)
    images = hash_files(dict.fromkeys(image for item in items for image in item.images))
    chosen = {"ratios": list(options.ratios), "near": options.near, "group_by": options.group_by}
    stage = run_stage(
        "data-split",
        options.output,
        inputs=_files_of(items),
        settings={**chosen, "images_sha256": set_hash(images)},
        build=lambda work: write(items, divided, work, options.output, groups_file=GROUPS),
        seed=options.seed,
        force=options.force,
        dry_run=options.dry_run,
    )
    return replace(stage, facts={"records": len(items), "groups": len(groups), "summary": summary(divided)})


def _files_of(items: list[Item]) -> dict[str, Path]:
    """Return the files that records come from, as inputs of a stage."""
    files = dict.fromkeys(item.path for item in items)
    return {"data" if not number else f"data {number + 1}": path for number, path in enumerate(files)}


@dataclass(frozen=True, kw_only=True)
class StatsOptions(_ModelOptions):
    """Options of `edgetune.data.stats`.

    Examples:
        >>> from edgetune import data
        >>> data.StatsOptions(data="train.jsonl", family="qwen3_vl", max_pixels=400_000).max_pixels
        400000
        >>> data.StatsOptions(data="train.jsonl", max_pixels=400_000)
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --min-pixels and --max-pixels need --family
    """

    data: Path = option(help="Records, in any format that data convert reads.", argument=True)


@takes(StatsOptions)
def stats(options: StatsOptions) -> dict[str, Any]:
    """Count a data set: records, pictures, labels, boxes, words and, with a model, tokens.

    Raises:
        InputError: a record is bad.
    """
    from edgetune_data.read import checked, image_sizes
    from edgetune_data.stats import stats as count

    items = checked(options.data)
    return count(items, image_sizes(items), options.model())
