"""A transformers model whose weights stay in files and are in memory one module at a time.

The model is built on the meta device. Its small parameters (norms outside of blocks, position tables) are loaded at
once; its *units*, which hold nearly all weights, are loaded for the time of their own forward: each block of the
decoder and of the vision tower, each merger, the head. The token table is never loaded: rows are gathered where they
lie. Nor is a head that is larger than a block: it is multiplied part by part. So whatever runs the model's own code
runs it, at the memory of one unit and its activations.

Each forward reads each unit once. `run_together` runs several forwards in turns, so that units are read once for all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from edgetune_core.checkpoint import quiet_libraries, tensor_places
from edgetune_core.progress import Tell, no_one
from edgetune_core.turns import Turns
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules

T = TypeVar("T")

LARGE = 1 << 29
"""Bytes of a weight, as it is computed with, above which its rows are worked on part by part: a head, a token table."""

Values = Callable[[Tensor], Tensor]
"""What a model's parameter holds: `StreamedModel.values`, or `own_values` for a model that is loaded."""


class Tensors(Protocol):
    """Where a model's weights are read from, by the names of its parameters in transformers."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor."""

    def read(self, name: str) -> Tensor:
        """A tensor in its own dtype. It may be a view of a mapped file, of which only touched pages are read."""

    def parts(self, name: str, rows: int) -> Iterator[Tensor]:
        """A tensor's rows in order, so many at a time; those that nobody holds any more take no memory."""


@runtime_checkable
class Parted(Protocol):
    """A tensor that is made when it is asked for, whole or so many rows at a time."""

    def __call__(self) -> Tensor:
        """The tensor."""

    def parts(self, rows: int) -> Iterator[Tensor]:
        """Its rows in order, so many at a time."""


class FileTensors:
    """The tensors of a checkpoint's safetensors files.

    Args:
        folder: the checkpoint.
        modules: names of its family.

    Raises:
        InputError: a file is missing or broken.
    """

    def __init__(self, folder: Path, modules: Modules) -> None:
        self._places = {modules.memory_name(name): (name, *place) for name, place in tensor_places(folder).items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: shape for name, (_, _, shape) in self._places.items()}

    def read(self, name: str) -> Tensor:
        """A view of the mapped file; the map is closed when the last view of it is gone."""
        from safetensors import safe_open

        stored, path, _ = self._places[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor

    def parts(self, name: str, rows: int) -> Iterator[Tensor]:
        """Rows in order, of maps of their own: pages count as this process's memory until their map is closed."""
        for first in range(0, self._places[name][2][0], rows):
            yield self.read(name)[first : first + rows]


class Replaced:
    """Tensors with others in the place of some.

    Args:
        base: all tensors.
        values: what takes the place of a tensor, by its name; names that `base` lacks are added.
        shapes: of those that are added.
        without: names that are left out.
    """

    def __init__(
        self,
        base: Tensors,
        values: Mapping[str, Callable[[], Tensor]],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        without: Collection[str] = (),
    ) -> None:
        self._base, self._values, self._shapes, self._without = base, values, shapes or {}, without

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor."""
        kept = {name: shape for name, shape in self._base.shapes().items() if name not in self._without}
        return {**kept, **self._shapes}

    def read(self, name: str) -> Tensor:
        """The replacing tensor, or the one below."""
        return self._values[name]() if name in self._values else self._base.read(name)

    def parts(self, name: str, rows: int) -> Iterator[Tensor]:
        """Rows in order, of the replacing tensor, made once or in parts if it can be, or of the one below."""
        if name not in self._values:
            yield from self._base.parts(name, rows)
            return
        values = self._values[name]
        yield from values.parts(rows) if isinstance(values, Parted) else values().split(rows)


def own_values(parameter: Tensor) -> Tensor:
    """The parameter itself."""
    return parameter


@dataclass
class _Product:
    """What a large layer is asked for: its input [..., in], and its output [..., out] when it is there."""

    x: Tensor
    output: Tensor | None = None


class StreamedModel:
    """A model that reads its weights as it runs.

    Args:
        config: of transformers; its class is that of `AutoModelForImageTextToText`.
        tensors: its weights.
        modules: names of its family.
        dtype: of weights and activations.
        device: where to compute.
        keep: bytes of units that may stay loaded; the first to be used do.
        large: bytes of a head beyond which it is not loaded, if it may not stay loaded either.
        name: what to call the checkpoint in messages.
        adapt: wraps modules of the model, which is on the meta device, in others, as adapters do; parameters that it
            adds are its own and stay in memory.

    Attributes:
        tensors: its weights.
        device: where it computes.
        keep: bytes of units that may stay loaded.
        model: in evaluation mode; its forward and `generate` work as always.

    Raises:
        InputError: the tensors are not exactly those of the model.
    """

    def __init__(
        self,
        config: Any,
        tensors: Tensors,
        modules: Modules,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        keep: int = 0,
        large: int = LARGE,
        name: str = "the checkpoint",
        adapt: Callable[[Any], object] | None = None,
    ) -> None:
        self.tensors, self._dtype, self.device = tensors, dtype, torch.device(device)
        self.model = skeleton(config, dtype)
        self._sources = _sources(self.model, tensors, name)
        _compute_buffers(self.model, self.device)
        table = self.model.get_input_embeddings()
        if adapt is not None:
            adapt(self.model)
        self._empty = {
            (owner, key): owner._parameters[key]
            for owner, key, parameter in _slots(self.model)
            if id(parameter) in self._sources
        }
        self._holders: Counter[nn.Module] = Counter()
        self.keep, self._kept, self._stay = keep, 0, set[nn.Module]()
        self._large, self._asked = large, defaultdict[nn.Module, list[_Product]](list)
        self._turns: Turns[nn.Module] | None = None
        embedding = self.model.get_input_embeddings()
        # A table that was wrapped is more than its rows: the wrapper needs it whole.
        self._units = [*([] if embedding is table else [embedding]), *_units(self.model, modules)]
        apart = {id(parameter) for unit in (*self._units, embedding) for parameter in unit.parameters()}
        for owner, key, parameter in _slots(self.model):
            if parameter.is_meta and id(parameter) not in apart:
                self._fill(owner, key, parameter)
        for unit in self._units:
            unit.forward = partial(self._forward, unit, unit.forward)
        if embedding is table:
            embedding.forward = partial(self._gather, embedding.weight)

    def values(self, parameter: Tensor) -> Tensor:
        """What a parameter of the model holds: in the files' dtype, or as it is where it is loaded."""
        return self.tensors.read(self._sources[id(parameter)]) if parameter.is_meta else parameter

    @contextmanager
    def loaded(self, module: nn.Module) -> Iterator[None]:
        """Have the weights of a module's units loaded for a while; a unit is a module with itself in it.

        Changes to them are lost afterwards, unless the unit is kept.
        """
        inside = set(module.modules())
        with ExitStack() as stack:
            for unit in self._units:
                if unit in inside:
                    stack.enter_context(self._held(unit))
            yield

    @contextmanager
    def _held(self, unit: nn.Module) -> Iterator[None]:
        if not self._holders[unit]:
            for owner, key, parameter in _slots(unit):
                if parameter.is_meta:
                    self._fill(owner, key, parameter)
        self._holders[unit] += 1
        try:
            yield
        finally:
            self._holders[unit] -= 1
            if not self._holders[unit]:
                self._drop(unit)

    def run_together(self, jobs: Sequence[Callable[[], T]], tell: Tell = no_one) -> list[T]:
        """Call functions that run the model, in turns, so that each unit is loaded once for all that come to it.

        Each runs in a thread of its own, one at a time, without gradients.

        Args:
            jobs: the functions.
            tell: called before a unit is loaded with its number and how many there are.

        Returns:
            What they return, in their order.
        """
        numbers = {unit: number for number, unit in enumerate(self._units)}

        def ready(unit: nn.Module) -> AbstractContextManager[None]:
            tell(numbers[unit], len(numbers))
            return self._multiplied(unit) if self._is_large(unit) else self._held(unit)

        self._turns = Turns(self._units, ready)
        try:
            return self._turns.run([torch.no_grad()(job) for job in jobs])
        finally:
            self._turns = None
            self._asked.clear()

    def _forward(self, unit: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._holders[unit] and self._is_large(unit):
            return self._product(unit, *args, **kwargs)
        if self._turns is not None and not self._holders[unit]:
            self._turns.wait(unit)
        with self._held(unit):
            return own(*args, **kwargs)

    def _is_large(self, unit: nn.Module) -> bool:
        """Whether a unit is a plain linear layer that is not worth its memory; a wrapper needs the whole weight."""
        return type(unit) is nn.Linear and unit.weight.nbytes > max(self._large, self.keep)

    def _product(self, unit: nn.Module, x: Tensor) -> Tensor:
        """A large layer's forward; in turns, its parts are read once for all that wait for it."""
        asked = _Product(x)
        self._asked[unit].append(asked)
        if self._turns is not None:
            self._turns.wait(unit)
        else:
            with self._multiplied(unit):
                pass
        assert asked.output is not None
        return asked.output

    @contextmanager
    def _multiplied(self, unit: nn.Module) -> Iterator[None]:
        """Give every product that was asked for its output; an output does not depend on other rows of the weight."""
        assert isinstance(unit, nn.Linear)
        asked = self._asked.pop(unit)
        rows = max(1, self._large // 4 // (unit.in_features * self._dtype.itemsize))
        own = unit._parameters["bias"]
        bias = None if own is None else self.values(own).to(self.device, self._dtype)
        for one in asked:
            one.output = one.x.new_empty(*one.x.shape[:-1], unit.out_features)
        for number, part in enumerate(self.tensors.parts(self._sources[id(unit.weight)], rows)):
            weight, span = part.to(self.device, self._dtype), slice(number * rows, number * rows + len(part))
            for one in asked:
                assert one.output is not None
                one.output[..., span] = nn.functional.linear(one.x, weight, None if bias is None else bias[span])
            del part, weight
        yield

    def _gather(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of the token table, read from where it lies."""
        return self.values(table)[ids.cpu()].to(self.device, self._dtype)

    def _fill(self, owner: nn.Module, key: str, parameter: Tensor) -> None:
        values = self.values(parameter).to(self.device, self._dtype)
        owner._parameters[key] = nn.Parameter(values, requires_grad=False)

    def _drop(self, unit: nn.Module) -> None:
        """Give up a unit's weights, unless there is room to keep them."""
        size = sum(parameter.nbytes for parameter in unit.parameters())
        if unit in self._stay or self._kept + size <= self.keep:
            self._kept += 0 if unit in self._stay else size
            self._stay.add(unit)
            return
        for owner, key, _ in _slots(unit):
            if (owner, key) in self._empty:
                owner._parameters[key] = self._empty[owner, key]


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """A model of transformers on the meta device: all of it but the weights."""
    from transformers import AutoModelForImageTextToText

    quiet_libraries()
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def _slots(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Each place of a parameter: its module, its name there and itself; a shared one has several."""
    for owner in module.modules():
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, key, parameter


def _units(model: Any, modules: Modules) -> list[nn.Module]:
    """What is loaded at a time, in the order that a forward comes to it, as far as that is known."""
    mergers = [model.get_submodule(name) for name in modules.mergers]
    parts = [model.get_submodule(name) for name in (modules.vision_blocks, modules.blocks) if name]
    listed = [(part if isinstance(part, nn.ModuleList) else [part]) for part in (*parts[:-1], *mergers, parts[-1])]
    return [*(unit for units in listed for unit in units), model.get_output_embeddings()]


def _sources(model: Any, tensors: Tensors, name: str) -> dict[int, str]:
    """The tensor that each parameter is read from, by the parameter's identity; tied ones are one parameter.

    Raises:
        InputError: a tensor is missing, has another shape or belongs nowhere.
    """
    shapes, sources, names, mismatched = tensors.shapes(), {}, set(), []
    for key, parameter in model.named_parameters(remove_duplicate=False):
        names.add(key)
        if key in shapes and id(parameter) not in sources:
            sources[id(parameter)] = key
            if shapes[key] != tuple(parameter.shape):
                mismatched.append(key)
    missing = [key for key, parameter in model.named_parameters() if id(parameter) not in sources]
    known = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unexpected = [key for key in shapes if key not in names and not any(pattern.search(key) for pattern in known)]
    for kind, found in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched)):
        if found:
            raise InputError(
                f"{name}: {len(found)} {kind} keys when loading, such as {min(found)}",
                hint="the weights and config.json must belong to the same model",
            )
    return sources


@torch.no_grad()
def _compute_buffers(model: Any, device: torch.device) -> None:
    """Fill the buffers that no file holds, such as rotary frequencies, as transformers does after loading."""
    owners: dict[str, Any] = {}
    for path, module in model.named_modules():
        # A part that is a model of its own fills what is its own.
        owners[path] = module if hasattr(module, "_init_weights") else owners[path.rpartition(".")[0]]
        unfilled = [key for key, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if unfilled:
            module._buffers |= {key: torch.empty_like(module._buffers[key], device="cpu") for key in unfilled}
            owners[path]._init_weights(module)
            module._buffers |= {key: module._buffers[key].to(device) for key in unfilled}
