"""What tests need again and again and nobody changes: built once a run, whichever process needs it first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def root(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of a run share, or several runs where EDGETUNE_BUILT names one."""
    if named := os.environ.get("EDGETUNE_BUILT"):
        return Path(named)
    base = factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "shared"
    shared.mkdir(exist_ok=True)
    return shared


def once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return a path that `build` was asked to write, by this process or by another one.

    Args:
        factory: of this run.
        name: of the path within the shared folder.
        build: writes a file or a folder to the path that it is given.
    """
    path = root(factory) / name
    if path.exists():
        return path
    pytest.importorskip("torch", reason="what has to be built is built with torch")
    from filelock import FileLock

    with FileLock(f"{path}.lock"):
        if not path.exists():
            partial = path.with_name(f"{name}.building")
            build(partial)
            partial.rename(path)
    return path
