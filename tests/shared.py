"""What tests need again and again and nobody changes: built once a run, whichever process needs it first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def share_traces(factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> None:
    """Let exports trace equal vision towers once a run: tracing is most of what an export of a small model takes.

    Towers are equal when their class, configuration and every weight are. `test_vision.py` holds that a graph that was
    written and read is the one that was traced.
    """
    import onnx
    import onnx_ir as ir

    from edgetune_export.vision import graph, trt
    from edgetune_export.vision.tower import export_vision

    def traced(wrapper: Any) -> ir.Model:
        name = f"trace-{_content(wrapper)}.onnx"
        path = once(factory, name, lambda partial: onnx.save(ir.to_proto(export_vision(wrapper)), partial))
        return ir.from_proto(onnx.load(path))

    for module in (graph, trt):
        patch.setattr(module, "export_vision", traced)


def _content(wrapper: Any) -> str:
    import torch

    digest = hashlib.sha256(repr((type(wrapper), wrapper.one_frame, wrapper.tower.config.to_dict())).encode())
    for name, tensor in sorted(wrapper.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
