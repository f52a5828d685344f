"""What can be measured here: an exported bundle, a Hugging Face checkpoint, or a checkpoint with a LoRA adapter."""

from __future__ import annotations

from pathlib import Path

from edgetune_runtime.bench.targets import Target, identify_bundle, is_bundle
from edgetune_runtime.errors import InputError

CHECKPOINT = "checkpoint"


def identify(path: Path, *, adapter: Path | None = None, engine: str | None = None) -> Target:
    """Tell what the folder `path` holds. Whether it is intact is the worker's to find out.

    A bundle needs only the runtime package; `engine` replaces the runtime's own for its format. A checkpoint needs
    torch and transformers.

    Raises:
        InputError: it is neither a bundle nor a checkpoint, or `adapter` is not an adapter.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder", hint="name a bundle or a Hugging Face checkpoint folder")
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: no adapter_config.json", hint="name the adapter folder that edgetune train wrote")
    if is_bundle(path):
        if adapter is not None:
            raise InputError(f"{path}: a bundle takes no --adapter", hint="merge the adapter first, then export")
        return identify_bundle(path, engine=engine)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path}: neither a bundle (manifest.json of edgetune export) nor a checkpoint (config.json)",
            hint="edgetune eval and bench take what edgetune merge or edgetune export wrote",
        )
    extra = ("--adapter", str(adapter)) if adapter else ()
    worker = ("edgetune_core.torch_runner.worker", "--checkpoint", str(path), *extra)
    name = path.resolve().name + (f"+{adapter.resolve().name}" if adapter else "")
    return Target(name, path, CHECKPOINT, worker, adapter)
