"""What a decoder block is given when the whole model runs, without running the whole model for each block.

The model's own forward is called. Blocks are replaced by stand-ins: the block before the one that is looked at returns
the output that was kept from its real run, the others pass their input on, and that block stops the forward. So
embeddings, masks, positions and whatever the model does between blocks (Qwen3-VL adds DeepStack features there)
happen in the model's own code, at the cost of no block. Where it does nothing between two blocks, it is not called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from edgetune_calibrate.activations import Activations, moved
from edgetune_calibrate.parts import Parts, pass_on
from edgetune_core.progress import Tell, no_one

Held = Callable[[nn.Module], AbstractContextManager[object]]
"""Has the weights of a module in memory while the returned context is entered."""

Rest = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block besides its hidden states."""


class _Stop(Exception):
    """Ends a forward that has shown what was wanted."""


class VisionCache:
    """Stands in for a vision tower: each batch goes through the real one once.

    Args:
        tower: the vision module; its `forward` is replaced until `close`.
        kept: where the outputs rest.
        device: where the model computes.
    """

    def __init__(self, tower: nn.Module, kept: Activations, device: torch.device) -> None:
        self.tower, self._real, self._kept, self._device = tower, tower.forward, kept, device
        self.batch = 0
        self._seen: set[int] = set()
        self._replaced = ExitStack()
        self._replaced.enter_context(_forwards({tower: self._forward}))

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        key = ("vision", self.batch)
        if self.batch not in self._seen:
            self._kept[key] = self._real(*args, **kwargs)
            self._seen.add(self.batch)
        # A copy each time: models put results of their own into the fields.
        return self._kept.get(key, self._device)

    def close(self) -> None:
        """Give the tower its own forward back, and keep nothing of it any more."""
        self._replaced.close()
        for number in self._seen:
            self._kept.drop(("vision", number))


class Surroundings:
    """What a model does before, between and after its blocks, for each of some batches.

    Each batch first goes through the model with stand-ins for all blocks (`survey`). That shows between which blocks
    the model changes the hidden states, and what else it gives to each block.

    Args:
        model: in evaluation mode.
        blocks: its decoder blocks, in order; they take the hidden states first and return them.
        batches: keyword arguments of the model's forward.
        vision: the stand-in of its vision tower, if it has one.
        kept: where arguments of blocks rest between two uses.
        device: where the model computes.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        batches: Sequence[Mapping[str, Any]],
        vision: VisionCache | None,
        kept: Activations,
        device: torch.device,
    ) -> None:
        self.model, self.blocks, self.kept, self.device = model, blocks, kept, device
        self._batches, self._vision = batches, vision
        # Of each batch for each block: whether its input is not the output of the block before, and which rest it gets.
        self._changes: list[list[bool]] = []
        self._rests: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._batches)

    def survey(self, tell: Tell = no_one) -> None:
        """Send all batches through the model, and tell how many went."""
        for number in range(len(self)):
            tell(number, len(self))
            found = _Survey()
            stand_ins: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(self.blocks[:-1], found.stand_in)
            stand_ins[self.blocks[-1]] = found.stop
            self._forward(number, stand_ins)
            self.kept["hidden", number] = found.first
            for index, rest in enumerate(found.rests):
                self.kept["rest", number, index] = rest
            self._changes.append(found.changes)
            self._rests.append(found.which)
        tell(len(self), len(self))

    def first(self, number: int) -> Tensor:
        """What the first block is given for a batch."""
        hidden: Tensor = self.kept.get(("hidden", number), self.device)
        return hidden

    def forget_first(self) -> None:
        """Keep no longer what the first block is given: all streams have entered it."""
        for number in range(len(self)):
            self.kept.drop(("hidden", number))

    def changes(self, number: int, index: int) -> bool:
        """Whether what block `index` is given for a batch is something else than what the block before returned."""
        return index >= len(self.blocks) or self._changes[number][index]

    def hidden(self, number: int, index: int, before: Tensor) -> Tensor:
        """What block `index` is given for a batch when the block before it returned `before`.

        An index past the last block stands for the model's output embeddings (the head).
        """
        earlier = self.blocks[:index]
        stand_ins: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(earlier[:-1], pass_on)
        stand_ins[earlier[-1]] = lambda *_, **__: before
        found: list[Tensor] = []

        def stop(hidden_states: Tensor, *_: Any, **__: Any) -> None:
            found.append(hidden_states)
            raise _Stop

        stand_ins[self.target(index)] = stop
        self._forward(number, stand_ins)
        return found[0]

    def rest(self, number: int, index: int) -> Rest:
        """What else block `index` is given for a batch."""
        if index >= len(self.blocks):
            return (), {}
        rest: Rest = self.kept.get(("rest", number, self._rests[number][index]), self.device)
        return rest

    def target(self, index: int) -> nn.Module:
        """Block `index`, or the head."""
        return self.blocks[index] if index < len(self.blocks) else output_head(self.model)

    @torch.no_grad()
    def _forward(self, number: int, stand_ins: Mapping[nn.Module, Callable[..., Any]]) -> None:
        """Run the model on a batch until a stand-in stops it."""
        if self._vision is not None:
            self._vision.batch = number
        with _forwards(stand_ins), suppress(_Stop):
            self.model(**moved(dict(self._batches[number]), self.device), use_cache=False)


class _Survey:
    """Stand-ins that pass their input on and note what they are called with.

    Attributes:
        first: hidden states that the first block is given.
        changes: for each block, whether its input is not what the block before passed on.
        rests: the different other arguments, by their objects.
        which: for each block, its place in `rests`.
    """

    first: Tensor

    def __init__(self) -> None:
        self.changes: list[bool] = []
        self.rests: list[Rest] = []
        self.which: list[int] = []
        self._passed: tuple[Tensor | None, int] = (None, 0)

    def stand_in(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before, version = self._passed
        if before is None:
            self.first = hidden_states.clone()
        self.changes.append(hidden_states is not before or before._version != version)
        known = [number for number, rest in enumerate(self.rests) if _same(rest, (args, kwargs))]
        self.which.append(known[0] if known else len(self.rests))
        if not known:
            self.rests.append((args, kwargs))
        passed = hidden_states.detach()  # another object: whether the next block gets this very one is to be seen
        self._passed = passed, passed._version
        return passed

    def stop(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> None:
        self.stand_in(hidden_states, *args, **kwargs)
        raise _Stop


class Stream:
    """The hidden states of all batches on their way through a decoder, block by block.

    Args:
        around: what happens outside of the blocks, already surveyed.
        name: of the stream: where it rests among the activations.
    """

    def __init__(self, around: Surroundings, name: str) -> None:
        self.around, self._name = around, name
        self._index = 0
        self._block: nn.Module = around.model

    def enter(self, index: int) -> None:
        """Take what block `index` is given from the model's forward; the block before it was left last.

        An index past the last block stands for the model's output embeddings (the head).
        """
        around = self.around
        for number in range(len(around)):
            if index == 0:
                self._put(number, around.first(number))
            elif around.changes(number, index):
                self._put(number, around.hidden(number, index, self._hidden(number)))
        self._index, self._block = index, around.target(index)

    def inputs(self, number: int, names: Sequence[str], parts: Parts | None = None) -> dict[str, Tensor]:
        """Return the input [B, S, K] of layers of the entered block for a batch.

        The block runs until all are known, unless it was left with them kept; then each is given once.

        Args:
            number: of the batch.
            names: relative to the block, "" for itself.
            parts: of the block, where layers before these do not change any more: what the last one of a part is given
                is kept, and the part runs no more.
        """
        if (self._name, number, names[0]) in self.around.kept:
            return {name: self._take(number, name) for name in names}
        found: dict[str, Tensor] = {}
        with self._watched(names, found, stop=True), suppress(_Stop):
            self._call(number, parts)
        if len(found) < len(names):
            raise AssertionError(f"the block calls only {sorted(found)} of {sorted(names)}")
        for part, last in (parts.last if parts is not None else {}).items():
            if last in found:
                self.around.kept[self._name, number, part] = found[last]
        return found

    def leave(self, keep: Sequence[str] = (), parts: Parts | None = None) -> None:
        """Run the entered block on all batches and keep what it returns, and what its layers `keep` are given."""
        for number in range(len(self.around)):
            found: dict[str, Tensor] = {}
            with self._watched(keep, found):
                self._put(number, self._call(number, parts))
            for name, given in found.items():
                self.around.kept[self._name, number, name] = given
            for part in parts.last if parts is not None else ():
                self.around.kept.drop((self._name, number, part))

    def close(self) -> None:
        """Keep nothing of the stream any more."""
        for number in range(len(self.around)):
            self.around.kept.drop((self._name, number))

    @contextmanager
    def _watched(self, names: Sequence[str], found: dict[str, Tensor], *, stop: bool = False) -> Iterator[None]:
        """Note what layers of the block are given, and with `stop` end the forward when all are known."""

        def hook(name: str) -> Callable[..., None]:
            def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[name] = args[0]
                if stop and len(found) == len(names):
                    raise _Stop

            return note

        handles = [self._block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _take(self, number: int, name: str) -> Tensor:
        key = (self._name, number, name)
        given: Tensor = self.around.kept.get(key, self.around.device)
        self.around.kept.drop(key)
        return given

    def _hidden(self, number: int) -> Tensor:
        hidden: Tensor = self.around.kept.get((self._name, number), self.around.device)
        return hidden

    def _put(self, number: int, hidden: Tensor) -> None:
        key: Hashable = (self._name, number)
        self.around.kept[key] = hidden

    @torch.no_grad()
    def _call(self, number: int, parts: Parts | None = None) -> Tensor:
        args, kwargs = self.around.rest(number, self._index)
        with ExitStack() as stack:
            if parts is not None:
                kept, keys = self.around.kept, {part: (self._name, number, part) for part in parts.last}
                given = {part: kept.get(key, self.around.device) for part, key in keys.items() if key in kept}
                stack.enter_context(_forwards(parts.stand_ins(given)))
                stack.enter_context(parts.watched())
            output: Tensor = self._block(self._hidden(number), *args, **kwargs)
        return output


def output_head(model: Any) -> nn.Module:
    """Return the linear that makes logits of the last hidden states."""
    head: nn.Module = model.get_output_embeddings()
    return head


@contextmanager
def _forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forwards for a while; all else of them (attributes that the model asks for) stays."""
    own = {module: vars(module)["forward"] for module in replacements if "forward" in vars(module)}
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module in replacements:
            if module in own:
                module.forward = own[module]
            else:
                del module.forward


def _same(one: Rest, other: Rest) -> bool:
    """Whether arguments are the same objects."""
    pairs = zip((*one[0], *one[1].values()), (*other[0], *other[1].values()), strict=False)
    return len(one[0]) == len(other[0]) and list(one[1]) == list(other[1]) and all(a is b for a, b in pairs)
