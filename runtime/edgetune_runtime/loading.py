"""How the programs of the runtime load a bundle: the same options for each of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.pixels import parse_area

if TYPE_CHECKING:
    from edgetune_runtime.session import Session

ENGINE = "an installed engine to use in place of the runtime's own for the format"


def add_options(parser: argparse._ActionsContainer, *, engine: str = ENGINE) -> None:
    """Add the options that `load_session` reads; `engine` is the help of --engine."""
    add = parser.add_argument
    device = "device to compute on: cpu, cuda, or one of several GPUs such as cuda:1 (default: cpu)"
    add("--device", default="cpu", help=device)
    add("--engine", metavar="NAME", help=engine)
    add("--threads", type=int, metavar="N", help="CPU threads (default: the engine's own choice)")
    area = "largest area of the resized picture, such as 400k, where less than the bundle's own is enough"
    add("--max-pixels", type=_area, metavar="N", help=area)
    add("--no-verify", action="store_true", help="start without checking the bundle's sha256 sums")


def load_session(folder: Path, options: Mapping[str, Any], **more: Any) -> Session:
    """Load a bundle as options say; `more` is what else `Session.load` takes. Raises what it raises."""
    from edgetune_runtime.session import Session

    return Session.load(
        folder,
        device=options["device"],
        threads=options["threads"],
        engine=options["engine"],
        verify=not options["no_verify"],
        max_pixels=options["max_pixels"],
        **more,
    )


def _area(text: str) -> int:
    try:
        return parse_area(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
