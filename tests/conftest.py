"""Checkpoints and bundles that many tests share; they are built once a run and must not be changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

# Read when triton is first imported, by transformers if not by us. Where there is a GPU: TRITON_INTERPRET=0 pytest ...
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from builders import build_qwen2_5_vl, build_qwen3_vl
from edgetune.cli import cli
from shared import once, share_traces
from weight_sets import build_weight_set


@pytest.fixture(scope="session", autouse=True)
def shared_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Equal vision towers are traced once a run."""
    with pytest.MonkeyPatch.context() as patch:
        share_traces(tmp_path_factory, patch)
        yield


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fp32 Qwen3-VL checkpoint with random weights."""
    return once(tmp_path_factory, "qwen3_vl", build_qwen3_vl)


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fp32 Qwen2.5-VL checkpoint with random weights."""
    return once(tmp_path_factory, "qwen2_5_vl", build_qwen2_5_vl)


@pytest.fixture(scope="session")
def qwen3_vl_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small bf16 Qwen3-VL checkpoint with random weights."""
    return once(tmp_path_factory, "qwen3_vl_bf16", partial(build_qwen3_vl, dtype=torch.bfloat16))


def export(checkpoint: Path, precision: str, output: Path) -> None:
    """Write a bundle as a user does."""
    arguments = ["export", "--checkpoint", str(checkpoint), "--precision", precision, "--output", str(output)]
    cli.main(arguments, standalone_mode=False)


@pytest.fixture(scope="session")
def qwen3_vl_bundle(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint as an fp32 ONNX bundle."""
    return once(tmp_path_factory, "qwen3_vl_bundle", partial(export, qwen3_vl, "fp32"))


@pytest.fixture(scope="session")
def qwen2_5_vl_bundle(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-VL checkpoint as an fp32 ONNX bundle."""
    return once(tmp_path_factory, "qwen2_5_vl_bundle", partial(export, qwen2_5_vl, "fp32"))


@pytest.fixture(scope="session")
def int4_bundle(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint as an int4 ONNX bundle with the default options."""
    return once(tmp_path_factory, "int4_bundle", partial(export, qwen3_vl, "int4"))


@pytest.fixture(scope="session")
def weight_set(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint's decoder layers as a weight set of asymmetric 4 bits in groups of 32."""
    return once(tmp_path_factory, "weight_set", partial(build_weight_set, qwen3_vl))


@pytest.fixture(scope="session")
def weight_set_2_5(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-VL checkpoint's decoder layers as a weight set of asymmetric 4 bits in groups of 32."""
    return once(tmp_path_factory, "weight_set_2_5", partial(build_weight_set, qwen2_5_vl))
