"""Which layers an adapter sits on, seen on the real module trees of both families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_runtime.errors import InputError
from edgetune_train.lora import lora_config, resolve_targets
from edgetune_train.settings import LoraSettings

LANGUAGE = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def base(request: pytest.FixtureRequest) -> HubCheckpoint:
    return HubCheckpoint.open(request.getfixturevalue(request.param))


def resolved(base: HubCheckpoint, *targets: str, vision: bool = False) -> list[str]:
    """Return the layers that peft really adapts, which must be the resolved ones."""
    model = base.load_model(torch.float32)
    names = resolve_targets(model, base.modules, targets, vision=vision)
    adapted = get_peft_model(model, lora_config(model, names, LoraSettings(rank=2)))
    tree = adapted.get_base_model().named_modules()
    assert sorted(name for name, module in tree if isinstance(module, LoraLayer)) == names
    return names


def test_auto_is_every_linear_layer_of_every_language_block(base: HubCheckpoint) -> None:
    layers = base.config["text_config"]["num_hidden_layers"]
    expected = [f"model.language_model.layers.{i}.{name}" for i in range(layers) for name in LANGUAGE]
    assert resolved(base, "auto") == sorted(expected)


def test_auto_with_vision_adds_the_whole_tower(base: HubCheckpoint) -> None:
    vision = [name for name in resolved(base, "auto", vision=True) if name.startswith("model.visual.")]
    model = base.load_model(torch.float32)
    linears = [name for name, module in model.model.visual.named_modules() if isinstance(module, torch.nn.Linear)]
    assert vision == sorted(f"model.visual.{name}" for name in linears)


def test_names_match_ends_outside_the_vision_tower(qwen2_5_vl: Path) -> None:
    base = HubCheckpoint.open(qwen2_5_vl)
    # Qwen2.5-VL has a gate_proj in both towers.
    assert resolved(base, "gate_proj") == [f"model.language_model.layers.{i}.mlp.gate_proj" for i in range(3)]
    assert any(name.startswith("model.visual.") for name in resolved(base, "gate_proj", vision=True))
    assert resolved(base, "layers.1.self_attn.q_proj") == ["model.language_model.layers.1.self_attn.q_proj"]
    assert resolved(base, "lm_head") == ["lm_head"]


def test_regular_expressions_match_whole_names(qwen3_vl: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    found = resolved(base, r".*\.layers\.[01]\.self_attn\.(q|v)_proj", "down_proj")
    assert len(found) == 4 + 4
    assert resolved(base, r"model\.visual\.blocks\.\d\.attn\.qkv") == [
        f"model.visual.blocks.{i}.attn.qkv" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("q_porj", "q_proj"),
        ("self_attn", "k_proj, o_proj, q_proj, v_proj"),
        ("qkv", "--vision-lora"),
        (r".*\.w[123]", "q_proj"),
    ],
)
def test_a_target_without_a_match_is_an_error_with_close_names(qwen3_vl: Path, target: str, hint: str) -> None:
    with pytest.raises(InputError, match="matches no linear layer") as caught:
        resolved(HubCheckpoint.open(qwen3_vl), "q_proj", target)
    assert target in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_broken_regular_expression_is_an_error(qwen3_vl: Path) -> None:
    with pytest.raises(InputError, match="not a regular expression"):
        resolved(HubCheckpoint.open(qwen3_vl), "(q_proj")
