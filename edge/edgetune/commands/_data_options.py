"""What the subcommands of `edgetune data` share: which model the data is for, and how results are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetune.commands._common import Console
from edgetune_core.stage import StageResult

if TYPE_CHECKING:
    from edgetune_data.model_view import ModelView

Function = TypeVar("Function", bound=Callable[..., Any])


def model_options(function: Function) -> Function:
    """Add the options that say which model the data is for."""
    count = click.IntRange(min=1)
    folder = click.Path(path_type=Path)
    for option in (
        click.option("--max-pixels", type=count, help="Most pixels of a resized picture, with --family."),
        click.option("--min-pixels", type=count, help="Fewest pixels of a resized picture, with --family."),
        click.option("--family", metavar="NAME", help="Family of the model, where there is no checkpoint yet."),
        click.option("--checkpoint", type=folder, help="Hugging Face folder of the model that will be trained."),
    ):
        function = option(function)
    return function


def model_view_of(
    checkpoint: Path | None, family: str | None, min_pixels: int | None, max_pixels: int | None
) -> ModelView | None:
    """Return how the model sees, or None where no model was named."""
    from edgetune_data.model_view import ModelView

    limits = (min_pixels, max_pixels)
    if checkpoint and (family or limits != (None, None)):
        raise click.UsageError("--checkpoint says the family and its limits; leave out the other options.")
    if checkpoint:
        return ModelView.of_checkpoint(checkpoint)
    if family:
        return ModelView.of_family(family, *limits)
    if limits != (None, None):
        raise click.UsageError("--min-pixels and --max-pixels need --family.")
    return None


def tell(console: Console, stage: StageResult, summary: str, *, dry_run: bool) -> None:
    """Say what became of a stage, in a line or as its manifest."""
    console.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": dry_run, **stage.manifest})
    if stage.skipped:
        console.line(f"{stage.folder}: unchanged, nothing to do")
    elif dry_run:
        console.line(f"{stage.folder}: would be written")
    else:
        console.line(f"{stage.folder}: {summary}")
