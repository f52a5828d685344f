"""`edgetune run`: try a bundle on a picture; the same as the runtime's own `edgetune-run`."""

from __future__ import annotations

import argparse
from pathlib import Path

import click

from edgetune.commands._common import Console, verb


@verb()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path())
@click.argument("phrases", metavar="PHRASE...", nargs=-1, required=True)
@click.option("--ask", is_flag=True, help="Take each PHRASE as a question and answer in words.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the picture with the boxes drawn.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to compute.")
@click.option("--threads", type=int, default=None, help="CPU threads; by default the engine's own choice.")
@click.option("--engine", default=None, help="An installed engine in place of the runtime's own for the format.")
@click.option("--max-new-tokens", type=int, default=None, help="Longest answer; by default 128, with --ask 256.")
@click.option("--no-verify", is_flag=True, help="Start without checking the bundle's sha256 sums.")
def command(console: Console, **options: object) -> None:
    """Find what phrases name in a picture, or ask about it, with a bundle."""
    from edgetune_runtime import cli

    cli.run(argparse.Namespace(json=console.as_json, **options))
