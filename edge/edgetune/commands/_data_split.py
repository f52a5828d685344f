"""`edgetune data split`: train, validation and test without a picture in two of them."""

from __future__ import annotations

import math
from pathlib import Path

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._data_options import tell
from edgetune_core.stage import run_stage

GROUPS = "groups.jsonl"


def _ratios(context: click.Context, option: click.Parameter, value: str) -> tuple[float, ...]:
    """Return "0.8,0.1,0.1" as numbers that add up to 1."""
    try:
        ratios = tuple(float(part) for part in value.split(","))
    except ValueError:
        ratios = ()
    if len(ratios) not in (2, 3) or any(not 0 <= ratio < 1 for ratio in ratios) or not math.isclose(sum(ratios), 1):
        raise click.BadParameter(f"{value!r} must be two or three shares that add up to 1", context, option)
    return ratios


@verb(writes=True)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for train.jsonl and the others.")
@click.option(
    "--ratios",
    default="0.8,0.1,0.1",
    callback=_ratios,
    metavar="TRAIN,VAL[,TEST]",
    help="Shares of the records; two or three that add up to 1.",
)
@click.option(
    "--near",
    type=click.IntRange(0, 32),
    default=6,
    help="Keep pictures together whose perceptual hashes differ in at most this many of 64 bits.",
)
@click.option("--group-by", metavar="KEY", help="Records with the same value of this key of meta stay together, too.")
@click.option("--seed", type=int, default=0, help="Random seed.")
def split(
    console: Console,
    data: Path,
    output: Path,
    ratios: tuple[float, ...],
    near: int,
    group_by: str | None,
    seed: int,
    force: bool,
    dry_run: bool,
) -> None:
    """Split a data set by picture: near-duplicates and crops of one original stay together.

    Labels, absent objects, questions and conversations are shared out evenly.
    """
    from edgetune_data.manifest import hash_files, set_hash
    from edgetune_data.read import checked
    from edgetune_data.split import divide, grouped, summary, write

    entries = checked(data)
    groups = grouped(entries, near, group_by)
    divided = divide(groups, ratios, seed)
    images = hash_files(dict.fromkeys(image for entry in entries for image in entry.images))
    files = dict.fromkeys(entry.path for entry in entries)
    stage = run_stage(
        "data-split",
        output,
        inputs={"data" if not number else f"data {number + 1}": path for number, path in enumerate(files)},
        settings={"ratios": list(ratios), "near": near, "group_by": group_by, "images_sha256": set_hash(images)},
        build=lambda work: write(entries, divided, work, output, groups_file=GROUPS),
        seed=seed,
        force=force,
        dry_run=dry_run,
    )
    console.table(summary(divided))
    tell(console, stage, f"{len(entries)} records in {len(groups)} groups", dry_run=dry_run)
