"""What a decoder block is given when the whole model runs, without running the whole model for each block.

The model's own forward is called. To reach block i the blocks before it are replaced by stand-ins: the last of them
returns the output that was kept from its real run, the others pass their input on, and block i stops the forward. So
embeddings, masks, positions and whatever the model does between blocks (Qwen3-VL adds DeepStack features there)
happen in the model's own code, at the cost of one block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """The arguments that a module was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def to(self, device: torch.device) -> Call:
        """Return the call with its tensors on a device."""
        return Call(_moved(self.args, device), _moved(dict(self.kwargs), device))


class _Stop(Exception):
    """Ends a forward that has shown what was wanted."""


class VisionCache:
    """Stands in for a vision tower: each batch goes through the real one once.

    Args:
        tower: the vision module; its `forward` is replaced until `close`.
        store: where the outputs rest.
    """

    def __init__(self, tower: nn.Module, store: torch.device) -> None:
        self._tower, self._real, self._store = tower, tower.forward, store
        self._kept: dict[int, Any] = {}
        self.batch = 0
        tower.forward = self._forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.batch not in self._kept:
            self._kept[self.batch] = _moved(self._real(*args, **kwargs), self._store)
        device = next(self._tower.parameters()).device
        # A copy each time: models put results of their own into the fields.
        return _moved(self._kept[self.batch], device)

    def close(self) -> None:
        """Give the tower its own forward back."""
        del self._tower.forward


class Stream:
    """All calibration batches on their way through a decoder, block by block.

    Args:
        model: in evaluation mode, with its weights on one device.
        blocks: its decoder blocks, in order; they take the hidden states first and return them.
        batches: keyword arguments of the model's forward.
        vision: the stand-in of its vision tower, if it has one.
        store: where activations rest between two uses.
        frozen: run a copy of each block, made when it is entered: changes to its weights stay unseen.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        batches: Sequence[Mapping[str, Any]],
        vision: VisionCache | None,
        store: torch.device,
        *,
        frozen: bool = False,
    ) -> None:
        self._model, self.blocks, self._batches = model, blocks, batches
        self._vision, self._store, self._frozen = vision, store, frozen
        self._device = next(model.parameters()).device
        self._outputs: list[Tensor] = []  # of the block that was left last
        self._calls: list[Call] = []
        self._block: nn.Module = model

    def enter(self, index: int) -> None:
        """Take the calls of block `index` from the model's forward; the block before it was left last.

        An index past the last block stands for the model's output embeddings (the head).
        """
        before = list(self.blocks[:index])
        target = self.blocks[index] if index < len(self.blocks) else output_head(self._model)
        self._calls = []
        for number in range(len(self._batches)):
            stand_ins: dict[nn.Module, Callable[..., Tensor]] = dict.fromkeys(before[:-1], _pass_on)
            stand_ins |= dict.fromkeys(before[-1:], self._kept(number))
            with _forwards(stand_ins):
                self._calls.append(self._run(number, target).to(self._store))
        self._block = copy.deepcopy(target) if self._frozen and index < len(self.blocks) else target

    def inputs(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the input [B, S, K] of layers of the entered block for a batch; the block runs until all are known.

        Args:
            number: of the batch.
            names: relative to the block, "" for itself.
        """
        found: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., None]:
            def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[name] = args[0]
                if len(found) == len(names):
                    raise _Stop

            return keep

        handles = [self._block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            self._call(self._calls[number])
        except _Stop:
            return found
        finally:
            for handle in handles:
                handle.remove()
        raise AssertionError(f"the block calls only {sorted(found)} of {sorted(names)}")

    def leave(self) -> None:
        """Run the entered block on all batches and keep what it returns."""
        self._outputs = [self._call(call).to(self._store) for call in self._calls]
        self._calls = []

    def skip(self, index: int) -> None:
        """Run blocks 0 .. `index` - 1 with the weights that they have, and leave the last of them."""
        self._block = self.blocks[index - 1]
        self._calls = [self._run(number, self._block).to(self._store) for number in range(len(self._batches))]
        self.leave()

    def _kept(self, number: int) -> Callable[..., Tensor]:
        return lambda *_, **__: self._outputs[number].to(self._device)

    @torch.no_grad()
    def _call(self, call: Call) -> Tensor:
        call = call.to(self._device)
        output: Tensor = self._block(*call.args, **call.kwargs)
        return output

    @torch.no_grad()
    def _run(self, number: int, target: nn.Module) -> Call:
        """Run the model on a batch until `target` is called, and return that call."""
        if self._vision is not None:
            self._vision.batch = number
        found: list[Call] = []

        def stop(*args: Any, **kwargs: Any) -> None:
            found.append(Call(args, kwargs))
            raise _Stop

        with _forwards({target: stop}), suppress(_Stop):
            self._model(**_moved(dict(self._batches[number]), self._device), use_cache=False)
        return found[0]


def output_head(model: Any) -> nn.Module:
    """Return the linear that makes logits of the last hidden states."""
    head: nn.Module = model.get_output_embeddings()
    return head


@contextmanager
def _forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forwards for a while; all else of them (attributes that the model asks for) stays."""
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module in replacements:
            del module.forward


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _moved(value: Any, device: torch.device) -> Any:
    """Return nested tensors on a device, in new containers of the same types."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):  # plain dicts and the outputs of transformers models
        return type(value)(**{key: _moved(item, device) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
