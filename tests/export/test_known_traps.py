"""Where other quantizers fall: what they need to run, and what readers make of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from shared import once
from train.conftest import write_records

PEERS = {
    "auto-gptq",
    "auto-round",
    "autoawq",
    "compressed-tensors",
    "gptqmodel",
    "llmcompressor",
    "nvidia-modelopt",
    "optimum",
    "torchvision",
}
MODULES = ["auto_gptq", "auto_round", "awq", "compressed_tensors", "gptqmodel", "llmcompressor", "modelopt", "optimum"]
FORMATS = ["gptq", "awq", "compressed-tensors"]

_WITHOUT_PEERS = f"""
import sys
for name in {[*MODULES, "torchvision"]}:
    sys.modules[name] = None  # importing it fails, and looking for it finds nothing
from edgetune.cli import cli
checkpoint, data, output, *formats = sys.argv[1:]
cli.main(["calibrate", "--checkpoint", checkpoint, "--data", data, "--method", "awq", "--group-size", "32",
          "--output", output + "/set"], standalone_mode=False)
for name in formats:
    cli.main(["export", "--checkpoint", checkpoint, "--weights", output + "/set", "--format", name,
              "--output", output + "/bundles/" + name], standalone_mode=False)
"""


def requirements(name: str, extras: frozenset[str]) -> set[str]:
    """Names of all distributions that one needs with some extras, as far as they are installed."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        current, wanted = waiting.pop()
        try:
            lines = requires(current) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                continue
            needed = requirement.name.lower().replace("_", "-")
            if needed not in found or requirement.extras - wanted:
                waiting.append((needed, frozenset(requirement.extras)))
            found.add(needed)
    return found


def test_no_other_quantizer_is_required() -> None:
    needed = requirements("edgetune", frozenset({"all"}))
    assert {"torch", "transformers", "safetensors", "edgetune-runtime"} <= needed
    assert not needed & PEERS


@pytest.fixture(scope="module")
def bundles(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AWQ of a Qwen3-VL on the CPU, calibrated and exported where no other quantizer can be imported."""

    def build(folder: Path) -> None:
        data = write_records(folder / "records")
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_PEERS, *map(str, (qwen3_vl, data, folder)), *FORMATS],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "without_peers", build) / "bundles"


@pytest.mark.parametrize("kind", FORMATS)
def test_checkpoints_are_written_without_them_and_known_to_transformers(bundles: Path, kind: str) -> None:
    declared = AutoConfig.from_pretrained(bundles / kind).quantization_config
    assert declared["quant_method"] in AUTO_QUANTIZATION_CONFIG_MAPPING
    if kind != "compressed-tensors":  # that class asks for the package when it is made
        parsed = cast(Any, AUTO_QUANTIZATION_CONFIG_MAPPING[declared["quant_method"]]).from_dict(declared)
        assert (parsed.bits, parsed.group_size) == (4, 32)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_number_in_a_checkpoint_is_finite(bundles: Path, kind: str) -> None:
    tensors = load_file(bundles / kind / "model.safetensors")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    assert len(floats) > 50
    assert [name for name, tensor in floats.items() if not torch.isfinite(tensor).all()] == []
    # NaN comes from a vision tower that a reader takes for quantized: it is there, whole and not packed.
    packed = {name.rpartition(".")[0] for name, tensor in tensors.items() if tensor.dtype == torch.int32}
    assert packed and not any("visual" in name for name in packed)
    config = json.loads((bundles / kind / "config.json").read_text(encoding="utf-8"))
    assert config["vision_config"]["depth"] == len({name.split(".")[3] for name in floats if ".visual.blocks." in name})
