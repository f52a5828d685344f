"""The model that is trained: a base, loaded as the settings say, with the adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import BitsAndBytesConfig, TrainingArguments

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off
from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_train.arguments import dtype_of
from edgetune_train.attention import choose_attention, use_attention
from edgetune_train.compiled import compile_blocks
from edgetune_train.fused import fuse
from edgetune_train.launch import is_sharded
from edgetune_train.lora import in_vision, lora_config, resolve_targets
from edgetune_train.settings import TrainSettings
from edgetune_train.tower import quicken
from edgetune_train.unfreeze import check_apart, resolve_unfreeze, to_float32
from edgetune_train.vision import FeatureInputs, ImageInputs, PixelInputs


@dataclass(frozen=True)
class Adapted:
    """A model that is ready to train.

    Attributes:
        model: of peft, adapter and all.
        images: what gives it its images.
        attention: how the samples of a pack are kept apart; "sdpa" where nothing is packed.
        segments: its attention wants to be told where the samples of a pack begin.
        layers: how many layers are adapted.
    """

    model: Any
    images: ImageInputs
    attention: str
    segments: bool
    layers: int

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def adapted_model(
    checkpoint: HubCheckpoint, settings: TrainSettings, arguments: TrainingArguments, *, start: Path | None
) -> Adapted:
    """Load the base and put the adapter on it.

    Args:
        checkpoint: the base.
        settings: the run's.
        arguments: transformers' form of them.
        start: the folder of an adapter whose weights to begin with, else new ones.

    Raises:
        InputError: a target matches nothing, or settings that exclude each other.
        MissingDependency: a library that a setting needs is not installed.
    """
    dtype = dtype_of(settings.precision)
    if settings.pack and checkpoint.family.recurrent:
        raise InputError(
            f"--pack cannot be used with {checkpoint.family.title}: a state of its layers would pass from one "
            "sample of a pack to the next",
            hint="leave --pack out",
        )
    if settings.compile and is_sharded(arguments):
        raise InputError("--compile cannot be combined with FSDP or DeepSpeed", hint="use DDP (torchrun)")
    quantization = None
    if settings.quantize != "none":
        if is_sharded(arguments):
            raise InputError("--quantize cannot be combined with FSDP or DeepSpeed", hint="use DDP (torchrun)")
        quantization = _nf4(checkpoint, dtype)
    fastest = choose_attention(settings.attention, dtype)
    attention = fastest if settings.pack else "sdpa"
    model = checkpoint.load_model(dtype, quantization)
    quicken(model.get_submodule(checkpoint.modules.vision_root), fastest)
    names = resolve_targets(model, checkpoint.modules, settings.lora.targets, vision=settings.lora.vision)
    whole = resolve_unfreeze(model, checkpoint.modules, settings.unfreeze)
    check_apart(names, whole)
    if whole and settings.loraplus_ratio is not None:
        raise InputError(
            "--loraplus-ratio cannot be combined with --unfreeze", hint="LoRA+ would also speed up unfrozen biases"
        )
    segments = use_attention(model, attention)
    budget = settings.cache_mb << 20
    images: ImageInputs = PixelInputs(checkpoint.spec, budget)
    vision_is_frozen = not whole and not any(in_vision(name, checkpoint.modules) for name in names)
    if vision_is_frozen and _in_one_process(arguments):
        images = FeatureInputs(model, checkpoint.spec, budget)
    with library_warnings_off():
        model = get_peft_model(model, lora_config(model, names, settings.lora, whole))
    to_float32(model)
    if not is_sharded(arguments):
        fuse(model)
    if settings.compile:
        blocks: Any = model.get_base_model().get_submodule(checkpoint.modules.blocks)
        compile_blocks(blocks)
    if start is not None:
        Adapter.of(checkpoint, start).load_into(model)
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()  # or the frozen embeddings would cut the graph before the first block
    return Adapted(model, images, attention, segments, len(names))


def _in_one_process(arguments: TrainingArguments) -> bool:
    """Whether the collator may run the model: it is in the training process, and its weights are whole."""
    return arguments.dataloader_num_workers == 0 and not is_sharded(arguments)


def _nf4(checkpoint: HubCheckpoint, dtype: torch.dtype) -> Any:
    """Return transformers' config for NF4 with double quantization (QLoRA, arXiv 2305.14314).

    The vision tower, the merger and the output head stay as they are: they are small, frozen, and read by every token.

    Args:
        checkpoint: the base.
        dtype: what the products are computed in.

    Raises:
        MissingDependency: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependency(
            "--quantize nf4: the Python package 'bitsandbytes' is not installed",
            hint=install_command("qlora"),
        )
    modules = checkpoint.modules
    make: Any = BitsAndBytesConfig
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[modules.vision_root, *modules.mergers, "lm_head"],
    )
