"""`edgetune data convert`: any known format becomes one canonical JSONL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb
from edgetune_core.stage import StageResult, run_stage

FORMATS = (
    *("csv", "parquet", "roboflow", "edgetune", "refcoco", "yolo", "voc", "coco", "labelstudio"),
    *("vqa", "vlm-r1", "openai", "llava", "swift"),
)
BOX_FORMATS = ("xyxy", "xywh", "xyxy-norm1", "xywh-norm1", "cxcywh-norm1", "xyxy-norm1000")


def _pairs(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Return NAME=TEXT options as a mapping."""
    pairs = {}
    for text in value:
        name, equals, rest = text.partition("=")
        if not (name and equals and rest) or name in pairs:
            raise click.BadParameter(f"{text!r} must be {option.metavar}, each name once", context, option)
        pairs[name] = rest
    return pairs


@verb(writes=True)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for data.jsonl.")
@click.option(
    "--format",
    default="auto",
    metavar="NAME",
    show_default=True,
    help=f"What PATH is: {', '.join(FORMATS)}, or a format that another package adds; auto looks.",
)
@click.option("--image-root", type=click.Path(path_type=Path), help="Where relative paths of pictures start.")
@click.option("--split", help="Read only this split (csv, parquet, refcoco, vqa, voc, yolo).")
@click.option(
    "--box-format", type=click.Choice(BOX_FORMATS), help="Of csv, parquet, vlm-r1 and voc; xyxy in pixels unless given."
)
@click.option(
    "--orientation",
    type=click.Choice(["upright", "stored"]),
    help="Whether boxes on pictures with an EXIF rotation were drawn on the upright picture or as it is stored.",
)
@click.option(
    "--annotations", type=click.Path(path_type=Path), help="Second file: instances of refcoco, answers of vqa."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    callback=_pairs,
    metavar="OURS=THEIRS",
    help="Name of a csv or parquet column, or the entry of a Label Studio task that an image tag shows.",
)
@click.option(
    "--question",
    "questions",
    multiple=True,
    callback=_pairs,
    metavar="CONTROL=TEXT",
    help="What a Label Studio control (its from_name) asks.",
)
@click.option("--group-rows", is_flag=True, help="Rows of the same picture and phrase are one record (csv, parquet).")
@click.option(
    "--crowd",
    type=click.Choice(["keep", "skip"]),
    help="COCO regions marked as a crowd, as CVAT marks masks: take the box for one object, or leave the region out; "
    "refused unless given.",
)
@click.option(
    "--text-boxes",
    type=click.Choice(["pixels", "norm1000", "norm1", "padded1", "auto"]),
    help="Frame of boxes that conversations hold as text, to make boxes of them: pixels, 0-1000 or 0-1 of width and "
    "height, or 0-1 of the picture padded to a square; auto where the file proves one. They stay text unless given.",
)
@click.option("--copy-images", is_flag=True, help="Copy all pictures into the output folder.")
@click.option("--allow-download", is_flag=True, help="Fetch pictures from http(s) addresses.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "report"]),
    default="stop",
    help="Bad records: stop at the first, or go on and write them to rejected.jsonl.",
)
def convert(
    console: Console,
    path: Path,
    output: Path,
    format: str,
    group_rows: bool,
    copy_images: bool,
    on_error: Any,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Write a data set of any known format as edgetune's own JSONL.

    PATH is a file or a folder. Everything is read and checked before anything is written.
    """
    from edgetune_data.convert import collect, write
    from edgetune_data.formats.base import Options
    from edgetune_data.read import Reading

    reading = Reading(path, format, Options(group=group_rows, **options))
    converted = collect(reading, on_error=on_error)
    roles = ["data", *(f"data {number}" for number in range(2, len(reading.files) + 1))]
    stage = run_stage(
        "data-convert",
        output,
        inputs=dict(zip(roles, reading.files, strict=True)),
        settings={
            "format": reading.format.name,
            "group_rows": group_rows,
            "copy_images": copy_images,
            "on_error": on_error,
            "images_sha256": converted.images_sha256,
            **options,
        },
        build=lambda folder: write(converted, folder, copy_images=copy_images),
        force=force,
        dry_run=dry_run,
    )
    for remark, count in reading.notes.items():
        console.note(f"{path}: {remark}: {count}")
    if converted.rejected:
        first = converted.rejected[0]["problem"]
        console.note(f"{path}: records rejected: {len(converted.rejected)}, the first: {first}")
    _report(console, stage, len(converted.values), reading.format.name, dry_run=dry_run)


def _report(console: Console, stage: StageResult, records: int, format: str, *, dry_run: bool) -> None:
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
    elif dry_run:
        console.line(f"{stage.folder}: would write {records} records from {format}")
    else:
        result = stage.manifest["result"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in result["kinds"].items())
        console.line(
            f"{stage.folder / 'data.jsonl'}: {records} records ({kinds}) of {result['images']} pictures "
            f"from {format}, {result['rejected']} rejected"
        )
