"""`edgetune.load`: a bundle or a checkpoint that answers, as the verb `run` asks it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_core.options import Options, option, takes
from edgetune_core.stage import check_input
from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.pixels import parse_area

if TYPE_CHECKING:
    from edgetune_runtime.answer import Runner


@dataclass(frozen=True)
class LoadOptions(Options):
    """Options of `edgetune.load`.

    Examples:
        >>> from edgetune import LoadOptions
        >>> options = LoadOptions("runs/onnx-int4", threads=2)
        >>> str(options.bundle), options.device, options.threads
        ('runs/onnx-int4', 'cpu', 2)
    """

    bundle: Path = option(help="Folder of a bundle or a checkpoint.", argument=True)
    _: KW_ONLY
    device: str = option("cpu", help="Device to compute on: cpu, cuda, or one of several GPUs such as cuda:1.")
    threads: int | None = option(None, help="CPU threads; by default the engine's own choice.")
    engine: str | None = option(None, help="Installed engine to use in place of the runtime's own for the format.")
    verify: bool = option(True, help="Compare a bundle's files with their sha256 sums first.")
    max_pixels: int | None = option(
        None,
        help="Largest area of a resized picture, such as 400k pixels, where less than a bundle's own is enough.",
        parse=parse_area,
        minimum=1,
    )
    adapter: Path | None = option(None, help="Folder of a LoRA adapter to apply to a checkpoint.")


_OF_SESSIONS = ("device", "threads", "engine", "verify", "max_pixels")


@takes(LoadOptions)
def load(options: LoadOptions) -> Runner:
    """Load a bundle or a checkpoint, which then answers by the same calls: `ground`, `answer`, `ask` and `stream`.

    A bundle becomes an `edgetune_runtime.Session`; a checkpoint runs under torch and is slower.

    Raises:
        InputError: there is neither of them, or an option is for the other kind.
        BundleError: the bundle is not intact.
        MissingDependency: the engine, torch or peft is not installed.
    """
    from edgetune_runtime.bench.targets import is_bundle
    from edgetune_runtime.session import Session

    for role, path in (("bundle", options.bundle), ("adapter", options.adapter)):
        if path is not None:
            check_input(path, role)
    if (options.bundle / "config.json").is_file() and not is_bundle(options.bundle):
        return _checkpoint(options)
    if options.adapter is not None:
        raise InputError(f"{options.bundle}: only a checkpoint takes an --adapter", hint="merge it, then export")
    settings: dict[str, Any] = {name: getattr(options, name) for name in _OF_SESSIONS}
    return Session.load(options.bundle, **settings)


def _checkpoint(options: LoadOptions) -> Runner:
    """Return a checkpoint that answers under torch."""
    from edgetune_runtime.backends import Device
    from edgetune_runtime.threads import check_threads

    if options.engine is not None:
        raise InputError(f"{options.bundle}: a checkpoint runs under torch; --engine is for bundles")
    if options.max_pixels is not None:
        raise InputError(f"{options.bundle}: a checkpoint has its own limits of pictures; --max-pixels is for bundles")
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
