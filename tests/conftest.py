"""Checkpoints that many tests share; they are built once per test process and must not be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders import build_qwen2_5_vl, build_qwen3_vl


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
