"""Adapters: one check for all that use one, and the names of other times, against peft and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.torch_runner.model import TorchModel
from edgetune_runtime.errors import InputError
from families.checkpoints import build_qwen2_vl

IDS = torch.arange(20, 50)[None]
_Models: Any = AutoModelForImageTextToText


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2-VL, which transformers named otherwise before 4.52."""
    return build_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it, as peft writes it today."""
    folder = tmp_path_factory.mktemp("adapter") / "new"
    model = get_peft_model(
        _Models.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(str(folder))
    return folder


def variant(adapter: Path, folder: Path, rename: Callable[[str], str] = str, change: Any = None, **config: Any) -> Path:
    """Copy an adapter with other names, other weights and other configuration values."""
    shutil.copytree(adapter, folder)
    weights = folder / "adapter_model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(weights).items()}
    if change is not None:
        name = next(iter(tensors))
        tensors[name] = change(tensors[name])
    save_file(tensors, weights, {"format": "pt"})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def old(name: str) -> str:
    """Return what transformers before 4.52 called a layer."""
    return name.replace("model.model.language_model.layers", "model.model.layers")


def test_an_adapter_of_an_older_transformers_is_applied_as_transformers_applies_it(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = variant(adapter, tmp_path / "old", old)
    reference = _Models.from_pretrained(base, dtype=torch.float32)
    plain = logits(reference)
    reference.load_adapter(str(folder))
    wanted = logits(reference)
    assert float((wanted - plain).abs().max()) > 0.1
    checkpoint = HubCheckpoint.open(base)
    found = logits(Adapter.of(checkpoint, folder).attach(checkpoint.load_model(torch.float32)))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_eval_and_run_refuse_an_adapter_that_does_not_fit(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = variant(adapter, tmp_path / "renamed", lambda name: name.replace("self_attn", "attention"))
    with pytest.raises(
        InputError, match=r"adapts model\.language_model\.layers\.0\.attention\.q_proj, which .* not have"
    ):
        TorchModel(base, adapter=folder, device="cpu")


def test_an_adapter_with_a_part_missing_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = variant(adapter, tmp_path / "partial")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if "v_proj" in name))
    save_file(tensors, weights, {"format": "pt"})
    checkpoint = HubCheckpoint.open(base)
    with pytest.raises(InputError, match=r"weights of the adapter's layers are not in its file"):
        Adapter.of(checkpoint, folder).attach(checkpoint.load_model(torch.float32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": None}, "lora_alpha must be a finite number, got None"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number, got True"),
        ({"r": None}, "r must be a finite number, got None"),
        ({"r": 0}, "r must be a finite number, got 0"),
        ({"lora_dropout": "much"}, "lora_dropout must be a finite number, got 'much'"),
    ],
)
def test_a_broken_config_is_one_line(config: dict[str, Any], message: str, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Adapter.open(variant(adapter, tmp_path / "broken", **config))
    assert message in str(caught.value) and "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, adapter: Path, tmp_path: Path) -> None:
    folder = variant(adapter, tmp_path / "nan", change=lambda tensor: torch.full_like(tensor, value))
    with pytest.raises(InputError, match="1 of 8 weights hold values that are not finite"):
        Adapter.open(folder)
