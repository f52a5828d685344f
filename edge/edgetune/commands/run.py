"""`edgetune run`: try a bundle or a checkpoint on a picture; with bundles, the same as `edgetune-run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, verb

if TYPE_CHECKING:
    from edgetune_runtime.answer import Runner


@verb()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path())
@click.argument("phrases", metavar="PHRASE...", nargs=-1, required=True)
@click.option("--ask", is_flag=True, help="Take each PHRASE as a question and answer in words.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the picture with the boxes drawn.")
@click.option("--device", default="cpu", help="Where to compute: cpu, cuda, or one of several GPUs such as cuda:1.")
@click.option("--threads", type=int, default=None, help="CPU threads; by default the engine's own choice.")
@click.option("--engine", default=None, help="An installed engine in place of the runtime's own for the format.")
@click.option("--max-new-tokens", type=int, default=None, help="Longest answer; by default 128, with --ask 256.")
@click.option("--no-verify", is_flag=True, help="Start without checking the bundle's sha256 sums.")
@click.option("--adapter", type=click.Path(path_type=Path), help="LoRA adapter to apply to a checkpoint.")
def command(console: Console, **options: object) -> None:
    """Find what phrases name in a picture, or ask about it, with a bundle or a checkpoint."""
    from edgetune_core.stage import check_input
    from edgetune_runtime import cli
    from edgetune_runtime.bench.targets import is_bundle
    from edgetune_runtime.errors import InputError

    chosen = argparse.Namespace(json=console.as_json, **options)
    for role in ("bundle", "adapter"):
        if getattr(chosen, role) is not None:
            check_input(getattr(chosen, role), role)
    if (chosen.bundle / "config.json").is_file() and not is_bundle(chosen.bundle):
        cli.run(chosen, _checkpoint)
        return
    if chosen.adapter is not None:
        raise InputError(f"{chosen.bundle}: only a checkpoint takes an --adapter", hint="merge it, then export")
    cli.run(chosen)


def _checkpoint(options: argparse.Namespace) -> Runner:
    """Return a checkpoint that answers under torch."""
    from edgetune_runtime.backends import Device
    from edgetune_runtime.errors import InputError, MissingDependency, install_command
    from edgetune_runtime.threads import check_threads

    if options.engine is not None:
        raise InputError(f"{options.bundle}: a checkpoint runs under torch; --engine is for bundles")
    try:
        import torch
        from transformers.utils import logging

        from edgetune_core.torch_runner.model import TorchModel
    except ImportError as error:
        raise MissingDependency("a checkpoint needs torch and transformers", hint=install_command("train")) from error
    Device.parse(options.device)
    notices: Any = logging
    notices.disable_progress_bar()
    if threads := check_threads(options.threads):
        torch.set_num_threads(threads)
    return TorchModel(options.bundle, adapter=options.adapter, device=options.device)
