"""`edgetune data`: the subcommands that read, check and rework data sets, one module each."""

from __future__ import annotations

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._data_check import check
from edgetune.commands._data_convert import convert
from edgetune.commands._data_crop import crop
from edgetune.commands._data_split import split
from edgetune.commands._data_stats import stats

SUBCOMMANDS: dict[str, click.Command] = {
    "convert": convert,
    "check": check,
    "crop": crop,
    "split": split,
    "stats": stats,
}


@verb(subcommands=SUBCOMMANDS)
@click.argument("subcommand")
def command(console: Console, subcommand: str) -> None:
    """Convert, check, crop, split and count data sets."""
    raise click.NoSuchCommand(subcommand, possibilities=SUBCOMMANDS, ctx=click.get_current_context())


command.no_args_is_help = True
