"""`edgetune data stats`: what is in a data set."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._data_options import model_options, model_view_of


@verb()
@click.argument("data", type=click.Path(path_type=Path))
@model_options
def stats(
    console: Console,
    data: Path,
    checkpoint: Path | None,
    family: str | None,
    min_pixels: int | None,
    max_pixels: int | None,
) -> None:
    """Count a data set: records, pictures, labels, box sizes and places, words, and with a model tokens."""
    from edgetune_data.read import checked, image_sizes
    from edgetune_data.stats import stats as count

    model = model_view_of(checkpoint, family, min_pixels, max_pixels)
    entries = checked(data)
    found = count(entries, image_sizes(entries), model)
    console.result({"data": data, **found})
    kinds = ", ".join(f"{number} {kind}" for kind, number in found["kinds"].items())
    console.line(f"{data}: {found['records']} records ({kinds}) of {found['images']} pictures")
    console.line(f"{found['boxes']} boxes, {found['points']} points, {found['labels']} different labels")
    console.line()
    spreads = found["distributions"] | found["tokens"]
    console.table([{"": name, **numbers} for name, numbers in spreads.items() if numbers])
    if found["boxes"]:
        console.line()
        places = list(found["positions"].values())
        rows = zip(("top", "middle", "bottom"), (places[:3], places[3:6], places[6:]), strict=True)
        columns = ("left", "centre", "right")
        console.table([{"box centres": row, **dict(zip(columns, counts, strict=True))} for row, counts in rows])
    if found["most_frequent_labels"]:
        console.line()
        frequent = found["most_frequent_labels"].items()
        console.table([{"label": label, "boxes": number} for label, number in frequent])
    if not found["tokens"]:
        console.line()
        console.line("not counted: tokens (needs --checkpoint, or --family with --min-pixels and --max-pixels)")
