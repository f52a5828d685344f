"""What `--device` moves: torch rounds to the codes of numpy, and a GPU writes the bundle that the CPU writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.cli import cli
from edgetune_export.decoder.rounding import round_with_torch
from edgetune_runtime.quant.blocks import BlockFormat, round_to_nearest

FORMATS = [BlockFormat(bits, block, symmetric) for bits in (4, 8) for block in (32, 128) for symmetric in (True, False)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_with_torch_is_rounding_with_numpy(device: str, dtype: torch.dtype, fmt: BlockFormat) -> None:
    """Also of inputs that are no multiple of a block, blocks of zeros, of one sign, of ties and of tiny numbers."""
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3], weight[4], weight[5], weight[6] = 0, weight[4].abs(), -weight[5].abs(), weight[6] * 1e-30
    weight[7, :64] = torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(16)
    ours = round_with_torch(weight, fmt, torch.device(device))
    theirs = round_to_nearest(weight.float().numpy(), fmt)
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    np.testing.assert_array_equal(ours.scales, theirs.scales)
    assert (ours.zero_points is None) == (theirs.zero_points is None) == fmt.symmetric
    if theirs.zero_points is not None:
        np.testing.assert_array_equal(ours.zero_points, theirs.zero_points)
    assert (ours.bits, ours.columns) == (theirs.bits, theirs.columns)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_a_gpu_writes_the_bundle_that_the_cpu_writes(
    precision: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    told: dict[str, dict[str, Any]] = {}
    for device in ("cpu", "cuda"):
        words = ["--checkpoint", str(request.getfixturevalue(family)), "--precision", precision, "--device", device]
        cli.main(["export", *words, "--output", str(tmp_path / device)], standalone_mode=False)
        told[device] = json.loads((tmp_path / device / "manifest.json").read_text())
    assert told["cpu"]["files"] == told["cuda"]["files"]
    assert told["cuda"]["result"]["bundle"]["parity"]["blocks"]["max_relative_error"] < 1e-4
