"""The attention and the MLP of a block, as far as they need not run again for what comes after them.

A block runs once for each group of its linears, with those before it quantized by then. What a part of it gives is the
output of its last linear: when the input of that is known, the part is that one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from edgetune_calibrate.activations import changed
from edgetune_runtime.families.base import Modules


class Parts:
    """The modules of a block that hold linears.

    A part is stood in for when it was seen (`watched`) to return nothing but its last linear's output, in whatever
    container.

    Args:
        block: of the decoder.
        modules: of its family.

    Attributes:
        last: part -> its last linear, names relative to the block.
    """

    def __init__(self, block: nn.Module, modules: Modules) -> None:
        self._block, self._norms = block, modules.norm_linears
        self.last = {part: name for name in modules.linears if (part := _part(name))}
        self._containers: dict[str, Any] = {}
        self._unseen = set(self.last)

    def stand_ins(self, given: Mapping[str, Tensor]) -> dict[nn.Module, Callable[..., Any]]:
        """Forwards for parts whose last linear is `given` so much, and for norms that only these read."""
        known = [part for part in given if part in self._containers]
        unread = [norm for norm, linears in self._norms.items() if all(_part(name) in known for name in linears)]
        norms: dict[nn.Module, Callable[..., Any]] = {self._block.get_submodule(norm): pass_on for norm in unread}
        return norms | {self._block.get_submodule(part): self._stand_in(part, given[part]) for part in known}

    def _stand_in(self, part: str, given: Tensor) -> Callable[..., Any]:
        linear = self._block.get_submodule(self.last[part])
        return lambda *_, **__: changed(self._containers[part], lambda _: linear(given))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at what parts return that were not seen yet, while the block runs."""
        outputs: dict[str, Any] = {}

        def note(part: str) -> Callable[..., None]:
            return lambda module, inputs, output: outputs.__setitem__(part, output)

        def see(part: str) -> Callable[..., None]:
            def compare(module: nn.Module, inputs: Any, output: Any) -> None:
                found: list[Tensor] = []

                def place(one: Tensor) -> Tensor:
                    found.append(one)
                    return one.new_empty(0)

                container = changed(output, place)
                self._unseen.discard(part)
                if len(found) == 1 and found[0] is outputs.pop(part, None):
                    self._containers[part] = container

            return compare

        handles = []
        for part in self._unseen:
            handles.append(self._block.get_submodule(self.last[part]).register_forward_hook(note(part)))
            handles.append(self._block.get_submodule(part).register_forward_hook(see(part)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _part(linear: str) -> str:
    return linear.rpartition(".")[0]


def pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A forward that gives back the hidden states."""
    return hidden_states
