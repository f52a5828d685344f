"""A LoRA adapter folder: reading it, and checking that it belongs to a base before anything large is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import MANIFEST, read_manifest
from edgetune_train.checkpoint import Checkpoint, tensor_shapes, weights_sha256

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """A peft LoRA adapter.

    Attributes:
        folder: where it is.
        config: its adapter_config.json.
        tensors: its weights by their names in the file.
    """

    folder: Path
    config: LoraConfig
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read an adapter folder.

        Raises:
            InputError: a file is missing or broken, or it is another kind of adapter than LoRA.
        """
        path = folder / "adapter_config.json"
        config = read_json(path)
        if config.get("peft_type") != "LORA":
            raise InputError(f"{path}: peft_type is {config.get('peft_type')!r}, only LORA adapters can be merged")
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise InputError(f"{weights}: no such file", hint="save the adapter as safetensors")
        try:
            tensors = load_file(weights)
        except SafetensorError as error:
            raise InputError(f"{weights}: not a safetensors file: {error}") from error
        bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise InputError(
                f"{weights}: {len(bad)} of {len(tensors)} weights hold values that are not finite, such as {bad[0]}",
                hint="the training that wrote it diverged: train again, with a lower --learning-rate",
            )
        scale = config.get("lora_alpha", LoraConfig.lora_alpha)
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise InputError(f"{path}: lora_alpha must be a finite number, got {scale}")
        try:
            parsed = LoraConfig.from_pretrained(str(folder))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: peft cannot read it: {error}") from error
        parsed.inference_mode = True
        return cls(folder, parsed, tensors)

    def touches(self, module: str) -> bool:
        """Whether a module of this last name ("lm_head") is changed."""
        return any(module in key.split(".") for key in self.tensors)

    def check_base(self, base: Checkpoint, *, allow_other_base: bool = False) -> None:
        """Refuse a base that this adapter was not trained on.

        The layers' names and shapes are compared; an adapter that our train stage wrote also knows the sha256 of
        its base's weights.

        Args:
            base: the checkpoint to merge into.
            allow_other_base: do not compare the sha256, for a base that was deliberately changed.

        Raises:
            InputError: it is another base; the message says how it shows.
        """
        shapes = {base.modules.memory_name(name): shape for name, shape in tensor_shapes(base.folder).items()}
        for key, tensor in self.tensors.items():
            layer, _, part = key.removeprefix(_PREFIX).partition(".lora_")
            if part not in ("A.weight", "B.weight"):
                continue  # peft checks what is not a plain pair of matrices when it loads it
            shape = shapes.get(f"{layer}.weight")
            if shape is None and layer == "lm_head":
                continue  # tied to the embeddings, so it has no tensor of its own
            if shape is None:
                raise InputError(
                    f"{self.folder}: adapts {layer}, which {base.folder} ({base.family.title}) does not have",
                    hint="give the base that the adapter was trained on",
                )
            side = 1 if part.startswith("A") else 0
            if len(shape) == 2 and tensor.ndim == 2 and tensor.shape[side] != shape[side]:
                raise InputError(
                    f"{self.folder}: {layer} is {list(shape)} in {base.folder}, lora_{part[0]} is {list(tensor.shape)}",
                    hint="give the base that the adapter was trained on",
                )
        if not allow_other_base:
            self._check_manifest(base)

    def _check_manifest(self, base: Checkpoint) -> None:
        if not (self.folder / MANIFEST).is_file():
            return
        manifest = read_manifest(self.folder)
        trained_on = manifest.get("result", {}).get("base_weights_sha256")
        if trained_on is None:
            return
        actual = weights_sha256(base.folder)
        if trained_on != actual:
            where = manifest.get("inputs", {}).get("checkpoint", {}).get("path", "another checkpoint")
            raise InputError(
                f"{self.folder}: was trained on {where} (weights {trained_on[:9]}), {base.folder} has {actual[:9]}",
                hint="give that base, or --allow-other-base if the difference is meant",
            )

    def attach(self, model: Any) -> PeftModel:
        """Return the model with this adapter active, in evaluation mode.

        Raises:
            InputError: peft cannot put it on this model, or does not find its weights a place.
        """
        try:
            adapted = get_peft_model(model, self.config)
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{self.folder}: does not fit the base: {error}") from error
        self.load_into(adapted)
        adapted.eval()
        return adapted

    def load_into(self, adapted: PeftModel) -> None:
        """Give a model with an adapter of the same shape these weights.

        Raises:
            InputError: some weights do not find a place, or some places no weights.
        """
        try:
            report: Any = set_peft_model_state_dict(adapted, dict(self.tensors))
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{self.folder}: does not fit the base: {error}") from error
        missing = [key for key in report.missing_keys if ".lora_" in key or ".modules_to_save." in key]
        lost = [*report.unexpected_keys, *missing]
        if lost:
            raise InputError(
                f"{self.folder}: {len(lost)} adapter weights have no counterpart in the base, such as {lost[0]}"
            )
