"""`edgetune data crop`: pictures cut around their objects, which the model then sees larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._data_options import tell
from edgetune_core.stage import run_stage


@verb(writes=True)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for data.jsonl and images/.")
@click.option(
    "--around",
    type=click.Choice(["record", "box", "picture"]),
    default="record",
    help="A crop for each record (around all of its boxes), each box, or each picture (all boxes of all records).",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=0.5,
    help="Room left around the objects, as a share of their size.",
)
@click.option("--min-size", type=click.IntRange(min=1), default=224, help="Shortest side of a crop in pixels.")
@click.option(
    "--max-size", type=click.IntRange(min=1), help="Longest side of a crop in pixels; objects are never cut for it."
)
@click.option(
    "--max-aspect",
    type=click.FloatRange(min=1),
    default=3.0,
    help="Largest ratio of a crop's longer side to its shorter one.",
)
@click.option(
    "--min-visible",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    help="Leave out a box of which the crop would show less than this share, with --around box.",
)
@click.option(
    "--rest", type=click.Choice(["keep", "drop"]), default="keep", help="What becomes of records without boxes."
)
@click.option("--originals", is_flag=True, help="Keep each cropped record as it was, too, before its crops.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "jpeg"]),
    default="png",
    help="File format of the crops; png keeps every pixel.",
)
def crop(
    console: Console,
    data: Path,
    output: Path,
    around: Any,
    rest: str,
    originals: bool,
    kind: Any,
    force: bool,
    dry_run: bool,
    **sizes: Any,
) -> None:
    """Cut pictures around their annotated objects and move the boxes along.

    Originals stay as they are; meta.origin of each record says where its crop comes from.
    """
    from edgetune_data.crop import beside_originals, plan, write
    from edgetune_data.crop_window import CropRules
    from edgetune_data.manifest import hash_files, set_hash
    from edgetune_data.read import checked, image_sizes

    rules = CropRules(**sizes)
    entries = checked(data)
    cuts = plan(entries, image_sizes(entries), rules, around)
    kept = [cut for cut in cuts if cut.windows or rest == "keep"]
    if not kept:
        raise click.UsageError(f"{data} has no record to crop and --rest drop leaves nothing.")
    dropped = len(cuts) - len(kept)
    kept = beside_originals(kept) if originals else kept
    images = hash_files(dict.fromkeys(image for entry in entries for image in entry.images))
    files = dict.fromkeys(entry.path for entry in entries)
    choices = {"around": around, "rest": rest, "originals": originals, "format": kind, **sizes}
    stage = run_stage(
        "data-crop",
        output,
        inputs={"data" if not number else f"data {number + 1}": path for number, path in enumerate(files)},
        settings={**choices, "images_sha256": set_hash(images)},
        build=lambda work: write(kept, work, output, kind=kind) | {"dropped": dropped},
        force=force,
        dry_run=dry_run,
    )
    cropped = sum(bool(cut.windows) for cut in kept)
    summary = f"{len(kept)} records: {cropped} on crops, {len(kept) - cropped} as they were"
    if dropped:
        summary += f", {dropped} dropped"
    notes = [note for cut in kept for note in cut.notes]
    if notes:
        left = sum(" left out:" in note for note in notes)
        summary += f"; {len(notes) - left} boxes cut, {left} left out (changes.jsonl)"
    tell(console, stage, summary, dry_run=dry_run)
