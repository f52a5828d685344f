"""`edgetune run`: try a bundle or a checkpoint on a picture; with bundles, the same as `edgetune-run`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.api.load import LoadOptions, load
from edgetune.commands._common import Console, verb
from edgetune_core.options import option

if TYPE_CHECKING:
    from edgetune_runtime.answer import Runner


@dataclass(frozen=True, kw_only=True)
class RunOptions(LoadOptions):
    """What is loaded, and what it is asked."""

    image: str = option(help="Picture file.", argument=True)
    phrases: tuple[str, ...] = option(help="What to find, or to ask.", argument=True, metavar="PHRASE...")
    ask: bool = option(False, help="Take each PHRASE as a question and answer in words.")
    free: bool = option(False, help="Let the model write anything, not boxes alone.")
    out: Path | None = option(None, help="File to write the picture with the boxes drawn to.")
    max_new_tokens: int | None = option(None, help="Longest answer, in tokens; by default 128, with --ask 256.")


@verb(RunOptions)
def command(console: Console, **options: Any) -> None:
    """Find what phrases name in a picture, or ask about it, with a bundle or a checkpoint."""
    from edgetune_runtime import cli

    def loaded(chosen: argparse.Namespace) -> Runner:
        return load(**{item.name: getattr(chosen, item.name) for item in fields(LoadOptions)})

    cli.run(argparse.Namespace(json=console.as_json, **options), loaded)
