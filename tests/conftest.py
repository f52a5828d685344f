"""Checkpoints and bundles that many tests share; they are built once per test process and must not be changed."""

from __future__ import annotations

import os
from pathlib import Path

# Read when triton is first imported, by transformers if not by us. Where there is a GPU: TRITON_INTERPRET=0 pytest ...
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from builders import build_qwen2_5_vl, build_qwen3_vl
from edgetune.cli import cli
from weight_sets import build_weight_set


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fp32 Qwen3-VL checkpoint with random weights."""
    return build_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small fp32 Qwen2.5-VL checkpoint with random weights."""
    return build_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture(scope="session")
def qwen3_vl_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small bf16 Qwen3-VL checkpoint with random weights."""
    return build_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl_bf16"), dtype=torch.bfloat16)


def export(checkpoint: Path, output: Path, precision: str) -> Path:
    """Write a bundle as a user does."""
    arguments = ["export", "--checkpoint", str(checkpoint), "--precision", precision, "--output", str(output)]
    cli.main(arguments, standalone_mode=False)
    return output


@pytest.fixture(scope="session")
def qwen3_vl_bundle(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint as an fp32 ONNX bundle."""
    return export(qwen3_vl, tmp_path_factory.mktemp("bundles") / "qwen3_vl", "fp32")


@pytest.fixture(scope="session")
def qwen2_5_vl_bundle(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-VL checkpoint as an fp32 ONNX bundle."""
    return export(qwen2_5_vl, tmp_path_factory.mktemp("bundles") / "qwen2_5_vl", "fp32")


@pytest.fixture(scope="session")
def int4_bundle(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint as an int4 ONNX bundle with the default options."""
    return export(qwen3_vl, tmp_path_factory.mktemp("bundles") / "int4", "int4")


@pytest.fixture(scope="session")
def weight_set(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen3-VL checkpoint's decoder layers as a weight set of asymmetric 4 bits in groups of 32."""
    return build_weight_set(qwen3_vl, tmp_path_factory.mktemp("weight_sets") / "qwen3_vl")


@pytest.fixture(scope="session")
def weight_set_2_5(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen2.5-VL checkpoint's decoder layers as a weight set of asymmetric 4 bits in groups of 32."""
    return build_weight_set(qwen2_5_vl, tmp_path_factory.mktemp("weight_sets") / "qwen2_5_vl")
