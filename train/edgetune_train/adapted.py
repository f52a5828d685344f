"""A base with its adapter, of which one block is in memory at a time: it answers, and its layers are merged one by one.

Whatever an adapter is made of, peft computes it: its layers run within the base's own code, and each is merged by its
own method. The arithmetic is float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoConfig

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off, tensor_places
from edgetune_core.streaming import LARGE, FileTensors, Replaced, StreamedModel
from edgetune_core.tensor_file import TensorFile, TensorLayout
from edgetune_runtime.errors import EdgetuneError, InputError, ParityError
from edgetune_train.proof import BAD_NUMBERS

HEAD = "lm_head.weight"


class Floats:
    """The tensors of a checkpoint in float32, which are not in memory in the dtype of their file as well.

    Args:
        base: the checkpoint.

    Attributes:
        table: name of the token table.
    """

    def __init__(self, base: HubCheckpoint) -> None:
        self.table = f"{base.modules.text_root}.embed_tokens.weight"
        self._mapped = FileTensors(base.folder, base.modules)
        places = {name: path for name, (path, _) in tensor_places(base.folder).items()}
        files = {path: TensorFile(path) for path in set(places.values())}
        self._files = {base.modules.memory_name(name): (name, files[path]) for name, path in places.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return self._mapped.shapes()

    def read(self, name: str) -> Tensor:
        """A tensor; the token table, of which prompts need few rows, is a view of its file and has the file's dtype."""
        return self._mapped.read(name) if name == self.table else self.whole(name)

    def parts(self, name: str, rows: int) -> Iterator[Tensor]:
        """A tensor's rows in order, so many at a time, in the file's dtype."""
        return self._mapped.parts(name, rows)

    def whole(self, name: str) -> Tensor:
        """A tensor in float32; a head that has no tensor of its own is the token table."""
        stored, file = self._files[self.table if name == HEAD and name not in self._files else name]
        return file.tensor(stored, torch.float32)


def streamed(checkpoint: HubCheckpoint, tensors: Any = None, **options: Any) -> StreamedModel:
    """Return a checkpoint's model, which reads its weights in float32 as it runs.

    Args:
        checkpoint: whose config it has.
        tensors: its weights, if they are others than the checkpoint's.
        options: of `StreamedModel`.

    Raises:
        InputError: the weights do not fit the config, or transformers makes no model of it.
    """
    weights = Floats(checkpoint) if tensors is None else tensors
    config = options.pop("config", None) or config_of(checkpoint.folder)
    try:
        return StreamedModel(config, weights, checkpoint.modules, name=str(checkpoint.folder), **options)
    except EdgetuneError:
        raise
    except Exception as error:  # a config that makes no sense raises almost anything, such as ZeroDivisionError
        raise InputError(f"{checkpoint.folder}: the model cannot be loaded: {str(error)[:300]}") from error


def config_of(folder: Path) -> Any:
    """Return transformers' config of a checkpoint.

    Raises:
        InputError: transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a config that makes no sense raises almost anything
        raise InputError(f"{folder}: the model cannot be loaded: {str(error)[:300]}") from error


class AdaptedBase:
    """A base with an adapter.

    Args:
        base: the checkpoint.
        adapter: what belongs to it.
        large: bytes of a float32 weight above which its rows are merged part by part.

    Attributes:
        plain: the base alone.
        active: the base with the adapter active.
        changed: names of the tensors that the adapter may change, in transformers.
        table: name of the token table, in transformers.
        unties: whether merging gives the output head weights of its own, which it shared with the token table.

    Raises:
        InputError: the adapter does not fit the base, or the base's weights do not fit its config.
    """

    def __init__(self, base: HubCheckpoint, adapter: Adapter, *, large: int = LARGE) -> None:
        self._adapter, self._floats, self._large = adapter, Floats(base), large
        self.table = self._floats.table
        self.plain = streamed(base, self._floats)
        model = self.plain.model
        shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        could_part = shared and (adapter.touches("lm_head") or adapter.touches("embed_tokens"))
        config, self._values = config_of(base.folder), dict[str, Callable[[], Tensor]]()
        shapes = {}
        # An adapter that moves one of the two and not the other needs two, or one would take the change of the other.
        self._parts = could_part and not getattr(adapter.config, "ensure_weight_tying", False)
        if self._parts:
            _tie(config, tied=False)
            self._values[HEAD] = partial(self._floats.whole, self.table)
            shapes[HEAD] = self._floats.shapes()[self.table]
        self._layers: dict[str, Any] = {}
        self._owners: dict[str, str] = {}
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        tensors = Replaced(self._floats, self._values, shapes)
        self.active = streamed(base, tensors, config=config, adapt=self._attach)
        self.changed = frozenset(self._owners)
        self.unties = could_part and not torch.equal(self.merged(self.table), self.merged(HEAD))

    def merged(self, name: str) -> Tensor:
        """Return what a tensor becomes, in float32.

        Raises:
            InputError: peft cannot merge the layer.
            ParityError: its weights are not finite.
        """
        if name not in self._owners:
            return self._floats.whole(name)
        path = self._owners[name]
        if self._last[0] != path:
            self._last = ("", {})  # or two layers would be in memory
            tensors = self._merge(path)
            if len(tensors) == 1:  # nobody asks for another one of this layer
                return tensors[name]
            self._last = (path, tensors)
        return self._last[1][name]

    def tensors(self) -> Replaced:
        """Return the weights of the whole merged model, as they are before they are rounded."""
        names = (
            [*self.changed, HEAD] if self.unties else [name for name in self.changed if name in self._floats.shapes()]
        )
        shapes = {HEAD: self._floats.shapes()[self.table]} if self.unties else {}
        return Replaced(self._floats, {name: partial(self.merged, name) for name in names}, shapes)

    def _attach(self, model: Any) -> None:
        if self._parts:
            _tie(model.config, tied=True)  # as it was where the adapter was trained
        with library_warnings_off():
            self._adapter.attach(model)
        for path, module in model.named_modules():
            wraps = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
            if wraps and not any(path.startswith(f"{outer}.") for outer in self._layers):
                self._layers[path] = module
                for name, _ in _inner(module).named_parameters():
                    self._owners[f"{path}.{name}"] = path
                if self._adapter.changes_base and isinstance(module, BaseTunerLayer):
                    self._values[f"{path}.weight"] = partial(self._without_start, path)

    def _copy(self, path: str) -> Any:
        """Return a copy of an adapter's layer, whose weights are those of the original."""
        layer = self._layers[path]
        kept = [self.active, *layer.parameters()] if hasattr(self, "active") else [*layer.parameters()]
        return copy.deepcopy(layer, {id(one): one for one in kept})

    def _without_start(self, path: str) -> Tensor:
        """Return a base layer's weight less what peft takes off it when the adapter's layer is made."""
        layer, weight = self._copy(path), self._floats.whole(f"{path}.weight")
        layer.get_base_layer().weight = nn.Parameter(weight, requires_grad=False)
        (name,) = layer.r
        try:
            with torch.random.fork_rng(devices=[]), library_warnings_off():
                torch.manual_seed(0)  # some begin with a random projection, which has to be the same each time
                layer.update_layer(name, layer.r[name], lora_alpha=layer.lora_alpha[name], config=self._adapter.config)
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{self._adapter.folder}: does not fit the base: {error}") from error
        result: Tensor = layer.get_base_layer().weight.data
        return result

    @torch.no_grad()
    def _merge(self, path: str) -> dict[str, Tensor]:
        """Return the tensors of a layer that peft has merged."""
        layer = self._copy(path)
        if not isinstance(layer, ModulesToSaveWrapper):  # its result is what was saved
            inner = _inner(layer)
            for name, _ in [*inner.named_parameters()]:
                whole = f"{path}.{name}"
                values = self._values[whole]() if whole in self._values else self._floats.whole(whole)
                owner, _, key = name.rpartition(".")
                inner.get_submodule(owner)._parameters[key] = nn.Parameter(values, requires_grad=False)
        folder = self._adapter.folder
        try:
            with library_warnings_off():
                if hasattr(layer, "unload_and_optionally_merge_module"):
                    done = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
                else:
                    _merge_layer(layer, self._large)
                    done = layer.get_base_layer()
        except RuntimeError as error:  # what peft makes of biases that the base's layers have no place for
            raise InputError(f"{folder}: cannot be merged: {error}", hint="train it without lora_bias") from error
        except ValueError as error:  # what peft's safe merge makes of weights that are not finite
            raise ParityError(f"{folder}: cannot be merged: {error}", hint=BAD_NUMBERS) from error
        return {f"{path}.{name}": values.detach() for name, values in done.named_parameters()}


def _merge_layer(layer: Any, large: int) -> None:
    """Merge an adapter's layer by its own method.

    That has the old weight, the change and the new weight in memory. Rows of a plain layer do not depend on each other,
    so that a large one is merged in parts, each as a layer of its own, in the place of the old weight.
    """
    base = layer.get_base_layer()
    linear = type(base) is nn.Linear and isinstance(layer, lora.Linear)
    rows = linear or (type(base) is nn.Embedding and isinstance(layer, lora.Embedding))
    if not rows or layer.lora_variant or any(layer.lora_bias.values()) or base.weight.nbytes <= large:
        layer.merge(safe_merge=True)
        return
    (name,) = layer.r
    whole, ups = base.weight.data, layer.lora_B[name].weight if linear else layer.lora_embedding_A[name].T
    for first, end in TensorLayout.like(whole).row_slices(large // 4):
        part = nn.Parameter(ups[first:end], requires_grad=False)
        if linear:
            layer.lora_B[name].weight = part
        else:
            layer.lora_embedding_A[name] = nn.Parameter(part.T, requires_grad=False)
        base.weight = nn.Parameter(whole[first:end], requires_grad=False)
        layer.merge(safe_merge=True)
        layer.merged_adapters.clear()
        whole[first:end] = base.weight
    base.weight = nn.Parameter(whole, requires_grad=False)


def _inner(layer: Any) -> Any:
    """Return the base's module in an adapter's layer."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer.original_module


def _tie(config: Any, *, tied: bool) -> None:
    """Say in a config whether head and token table are one tensor; transformers looks in both places."""
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = tied
