"""Small models, inputs for them, and what a plain forward of a hand-quantized copy gives their layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from edgetune_calibrate.quantize import DecoderSettings, SolvedBlock, quantize_decoder
from edgetune_calibrate.solve import LinearGroup, SolveSettings, solve_group
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockWeight

RTN = SolveSettings(method="rtn", group_size=32)
LLAMA = Modules(
    blocks="model.layers",
    linears=(
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ),
    norm_linears={
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    text_root="model",
    vision_root="",
    lora_targets="",
)


def load(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def llama() -> nn.Module:
    """Return a small text-only model with random weights and a head of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.eval()


def picture_batches(model: Any, grids: Sequence[tuple[int, int]] = ((4, 6), (8, 4), (6, 6))) -> list[dict[str, Tensor]]:
    """Return one conversation for each grid of patches (rows, columns), with random pixels and words."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    channels = 3 * 2 * config.vision_config.patch_size**2
    batches = []
    for rows, columns in grids:
        image = torch.full((1, rows * columns // 4), config.image_token_id)
        words = torch.randint(20, 100, (1, 14), generator=generator)
        ids = torch.cat([words[:, :5], torch.tensor([[config.vision_start_token_id]]), image, words[:, 5:]], dim=1)
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": (ids == config.image_token_id).long(),
                "pixel_values": torch.randn(rows * columns, channels, generator=generator),
                "image_grid_thw": torch.tensor([[1, rows, columns]]),
            }
        )
    return batches


@dataclass
class Recorder:
    """A solver that keeps what it was asked."""

    groups: list[LinearGroup] = field(default_factory=list)

    def __call__(self, group: LinearGroup, settings: SolveSettings) -> dict[str, BlockWeight]:
        # The model's own weights are overwritten with the solution.
        kept = {name: weight.clone() for name, weight in group.weights.items()}
        self.groups.append(replace(group, weights=kept))
        return solve_group(group, settings)


def walk(
    model: nn.Module, modules: Modules, batches: Sequence[Mapping[str, Any]], settings: DecoderSettings, **options: Any
) -> tuple[list[SolvedBlock], list[LinearGroup]]:
    """Quantize a model; return its blocks and what the solver was asked."""
    recorder = Recorder()
    blocks = list(quantize_decoder(model, modules, batches, settings, solve=recorder, **options))
    return blocks, recorder.groups


def put(model: nn.Module, weights: Mapping[str, BlockWeight]) -> None:
    """Give linears the dequantized weights, as parameters of their own."""
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        device = layer.get_parameter("weight").device
        layer.weight = nn.Parameter(torch.from_numpy(weight.dequantize()).to(device))


def layer_inputs(model: nn.Module, name: str, batches: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Return what a layer reads in the model's plain forward, [B, S, K] for each batch."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return found


def references(
    model: nn.Module, groups: Sequence[LinearGroup], blocks: Sequence[SolvedBlock], batches: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[LinearGroup, list[Tensor]]]:
    """Yield for each group in order the inputs that a copy gives it in which the groups before are quantized."""
    solved = {name: weight for block in blocks for name, weight in block.weights.items()}
    model = copy.deepcopy(model)
    for group in groups:
        yield group, layer_inputs(model, group.names[0], batches)
        put(model, {name: solved[name] for name in group.names})


def second_moments(inputs: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Return Σ w x xᵀ / Σ w in float64, over the tokens of all batches."""
    rows = torch.cat([one.flatten(0, 1) for one in inputs]).double()
    each = rows.new_ones(len(rows)) if weights is None else torch.cat([one.flatten() for one in weights])
    return (rows.T * each.double()) @ rows / each.double().sum()
