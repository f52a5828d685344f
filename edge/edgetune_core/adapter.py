"""A LoRA adapter folder: reading it, and checking that it belongs to a base before anything large is loaded."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_core.checkpoint import HubCheckpoint, tensor_shapes, weights_sha256
from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel

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
        try:
            import torch
            from peft import LoraConfig
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingDependency("an adapter needs peft", hint=install_command("train")) from error

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
        for key, least in (("lora_alpha", None), ("r", 1), ("lora_dropout", 0)):
            value = config.get(key, getattr(LoraConfig, key))
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (least is not None and value < least):
                raise InputError(f"{path}: {key} must be a finite number, got {value!r}")
        try:
            parsed = LoraConfig.from_pretrained(str(folder))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: peft cannot read it: {error}") from error
        parsed.inference_mode = True
        return cls(folder, parsed, tensors)

    @classmethod
    def of(cls, base: HubCheckpoint, folder: Path, *, allow_other_base: bool | None = None) -> Adapter:
        """Read an adapter and make sure that it belongs to a base: the one check of all that use an adapter.

        Args:
            base: the checkpoint.
            folder: of the adapter.
            allow_other_base: as for `check_base`.

        Raises:
            InputError: as `open` and `check_base`.
        """
        adapter = cls.open(folder).fitted(base)
        adapter.check_base(base, allow_other_base=allow_other_base)
        return adapter

    def fitted(self, base: HubCheckpoint) -> Adapter:
        """Return this adapter with the names that transformers gives the base's layers today.

        transformers before 4.52 called the layers of Qwen2-VL and Qwen2.5-VL as published checkpoints do
        (`model.layers`, `visual`); adapters of that time name them so.
        """
        shapes = {base.modules.memory_name(name) for name in tensor_shapes(base.folder)}

        def renamed(key: str) -> str:
            prefix = _PREFIX if key.startswith(_PREFIX) else ""
            name = key.removeprefix(_PREFIX)
            layer = name.partition(".lora_")[0]
            if f"{layer}.weight" in shapes or layer == "lm_head":
                return key
            today = base.modules.memory_name(name)
            return prefix + today if f"{today.partition('.lora_')[0]}.weight" in shapes else key

        tensors = {renamed(key): tensor for key, tensor in self.tensors.items()}
        config = copy.copy(self.config)
        for field in ("target_modules", "modules_to_save", "exclude_modules"):
            names = getattr(config, field, None)
            if isinstance(names, set | list | tuple):
                today = [renamed(name) if "." in name else name for name in names]
                setattr(config, field, type(names)(today))
        return Adapter(self.folder, config, tensors)

    def touches(self, module: str) -> bool:
        """Whether a module of this last name ("lm_head") is changed."""
        return any(module in key.split(".") for key in self.tensors)

    def check_base(self, base: HubCheckpoint, *, allow_other_base: bool | None = None) -> None:
        """Refuse a base that this adapter was not trained on.

        The layers' names and shapes are compared; an adapter that our train stage wrote also knows the sha256 of
        its base's weights.

        Args:
            base: the checkpoint to merge into.
            allow_other_base: do not compare the sha256, for a base that was deliberately changed; None where the user
                has no such choice.

        Raises:
            InputError: it is another base; the message says how it shows.
        """
        packed = "quantization_config" in base.config  # then its tensors have other names and shapes
        shapes = {base.modules.memory_name(name): shape for name, shape in tensor_shapes(base.folder).items()}
        for key, tensor in () if packed else self.tensors.items():
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
            choice = ", or --allow-other-base if the difference is meant" if allow_other_base is not None else ""
            self._check_manifest(base, f"give that base{choice}")

    def _check_manifest(self, base: HubCheckpoint, hint: str) -> None:
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
                hint=hint,
            )

    @property
    def changes_base(self) -> bool:
        """Whether peft, when it makes the adapter's layers, takes their first values off the base's weights."""
        init = self.config.init_lora_weights
        return isinstance(init, str) and init.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))

    def attach(self, model: Any) -> PeftModel:
        """Return the model with this adapter active, in evaluation mode.

        A model on the meta device keeps its weights there, the adapter's are in memory; if the adapter
        `changes_base`, that is left to the caller.

        Raises:
            InputError: peft cannot put it on this model, or does not find its weights a place.
        """
        from peft import get_peft_model

        meta = all(parameter.is_meta for parameter in model.parameters())
        config = copy.copy(self.config)
        if meta and self.changes_base:
            config.init_lora_weights = False
        with _placeholders(model) if meta else contextlib.nullcontext():
            try:
                adapted = get_peft_model(model, config, low_cpu_mem_usage=meta)
            except (ValueError, RuntimeError, KeyError) as error:
                raise InputError(f"{self.folder}: does not fit the base: {error}") from error
            self.load_into(adapted, empty=meta)
        adapted.eval()
        return adapted

    def load_into(self, adapted: PeftModel, *, empty: bool = False) -> None:
        """Give a model with an adapter of the same shape these weights.

        Args:
            adapted: the model.
            empty: the adapter's layers have no values yet, and take these tensors as they are.

        Raises:
            InputError: some weights do not find a place, or some places no weights.
        """
        from peft.utils import set_peft_model_state_dict

        try:
            report: Any = set_peft_model_state_dict(adapted, dict(self.tensors), low_cpu_mem_usage=empty)
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{self.folder}: does not fit the base: {error}") from error
        missing = [key for key in report.missing_keys if ".lora_" in key or ".modules_to_save." in key]
        for keys, problem in (
            (report.unexpected_keys, "adapter weights have no counterpart in the base"),
            (missing, "weights of the adapter's layers are not in its file"),
        ):
            if keys:
                raise InputError(f"{self.folder}: {len(keys)} {problem}, such as {keys[0]}")


@contextlib.contextmanager
def _placeholders(model: Any) -> Iterator[None]:
    """Have parameters on the meta device stand on the CPU for a while, where each takes one number of memory.

    peft moves an adapter's weights to the device of the layer that they belong to.
    """
    import torch

    slots = [
        (module, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None
    ]
    ours: dict[int, Any] = {}
    for module, key, parameter in slots:
        if id(parameter) not in ours:
            values = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            ours[id(parameter)] = torch.nn.Parameter(values, requires_grad=False)
        module._parameters[key] = ours[id(parameter)]
    try:
        yield
    finally:
        for module, key, parameter in slots:
            module._parameters[key] = parameter
