"""Checkpoints and bundles that many tests share; they are built once a run and must not be changed.

What they are built with is imported when they are: the runtime's tests also run where only the runtime is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

# Read when triton is first imported, by transformers if not by us. Where there is a GPU: TRITON_INTERPRET=0 pytest ...
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from shared import once
from warm import WarmPython


def pytest_configure(config: pytest.Config) -> None:
    """Let all processes of a run start from one that has imported torch, where there is one to import.

    What they note in the user's cache goes to a folder of the run.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="edgetune-cache-")
        config.add_cleanup(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name
    if sys.platform == "linux" and find_spec("torch") is not None and "EDGETUNE_WARM" not in os.environ:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgetune-warm-"))
        os.environ["EDGETUNE_WARM"] = str(stack.enter_context(WarmPython(Path(folder))).python)
    if "EDGETUNE_WARM" in os.environ:
        sys.executable = os.environ["EDGETUNE_WARM"]


def _qwen3_vl(folder: Path, dtype: str = "float32") -> Path:
    import torch

    from builders import build_qwen3_vl

    return build_qwen3_vl(folder, dtype=getattr(torch, dtype))


def _qwen2_5_vl(folder: Path) -> Path:
    from builders import build_qwen2_5_vl

    return build_qwen2_5_vl(folder)


def _qwen2_vl(folder: Path) -> Path:
    from families.checkpoints import build_qwen2_vl

    return build_qwen2_vl(folder)


def _weight_set(checkpoint: Path, folder: Path) -> Path:
    from weight_sets import build_weight_set

    return build_weight_set(checkpoint, folder)


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fp32 Qwen3-VL checkpoint with random weights."""
    return once(tmp_path_factory, "qwen3_vl", _qwen3_vl)


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fp32 Qwen2.5-VL checkpoint with random weights."""
    return once(tmp_path_factory, "qwen2_5_vl", _qwen2_5_vl)


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny fp32 Qwen2-VL checkpoint with random weights."""
    return once(tmp_path_factory, "tiny_qwen2_vl", _qwen2_vl)


@pytest.fixture(scope="session")
def qwen3_vl_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small bf16 Qwen3-VL checkpoint with random weights."""
    return once(tmp_path_factory, "qwen3_vl_bf16", lambda folder: _qwen3_vl(folder, "bfloat16"))


def export(checkpoint: Path, precision: str, output: Path) -> None:
    """Write a bundle as a user does."""
    from edgetune.cli import cli

    arguments = ["export", "--checkpoint", str(checkpoint), "--precision", precision, "--output", str(output)]
    cli.main(arguments, standalone_mode=False)


@pytest.fixture(scope="session")
def qwen3_vl_bundle(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint as an fp32 ONNX bundle."""
    return once(tmp_path_factory, "qwen3_vl_bundle", lambda folder: export(qwen3_vl, "fp32", folder))


@pytest.fixture(scope="session")
def qwen2_5_vl_bundle(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-VL checkpoint as an fp32 ONNX bundle."""
    return once(tmp_path_factory, "qwen2_5_vl_bundle", lambda folder: export(qwen2_5_vl, "fp32", folder))


@pytest.fixture(scope="session")
def qwen2_vl_bundle(qwen2_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2-VL checkpoint as an fp32 ONNX bundle."""
    return once(tmp_path_factory, "qwen2_vl_bundle", lambda folder: export(qwen2_vl, "fp32", folder))


@pytest.fixture(scope="session")
def int4_bundle(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint as an int4 ONNX bundle with the default options."""
    return once(tmp_path_factory, "int4_bundle", lambda folder: export(qwen3_vl, "int4", folder))


@pytest.fixture(scope="session")
def free_bundle(qwen3_vl_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL bundle without a grammar of answers, so that they are whatever random weights write."""
    return once(tmp_path_factory, "free_bundle", lambda folder: _without_grammar(qwen3_vl_bundle, folder))


def _without_grammar(bundle: Path, folder: Path) -> None:
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["result"]["bundle"]["grammar"] = {"problem": "left out for a test"}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="session")
def weight_set(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint's decoder layers as a weight set of asymmetric 4 bits in groups of 32."""
    return once(tmp_path_factory, "weight_set", lambda folder: _weight_set(qwen3_vl, folder))


@pytest.fixture(scope="session")
def weight_set_2_5(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-VL checkpoint's decoder layers as a weight set of asymmetric 4 bits in groups of 32."""
    return once(tmp_path_factory, "weight_set_2_5", lambda folder: _weight_set(qwen2_5_vl, folder))


def _tiny_bundle(folder: Path) -> None:
    from builders import TINY_MODEL
    from edgetune.cli import cli

    paths = ["--checkpoint", str(TINY_MODEL), "--output", str(folder)]
    cli.main(["export", *paths, "--check", "none"], standalone_mode=False)


def _tiny_scenes(folder: Path) -> None:
    import make_data

    make_data.main(["--output", str(folder), "--test", "24"])


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tiny example model as an int4 ONNX bundle."""
    return once(tmp_path_factory, "tiny_bundle", _tiny_bundle)


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of 24 of its scenes, with a request or a question each."""
    return once(tmp_path_factory, "tiny_scenes", _tiny_scenes) / "test.jsonl"
