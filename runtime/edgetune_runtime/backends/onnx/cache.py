"""The KV cache of an onnxruntime decoder: one buffer written in place, or one that grows with every call.

Graphs with onnxruntime's own attention write into the past when past and present are the same memory. Graphs of
standard operators concatenate, and say so in their metadata under `METADATA`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.values import Device

Array = npt.NDArray[Any]

METADATA = "edgetune.cache"
GROWING = "growing"

_CACHE_STEP = 64
"""Buffers grow in steps of this many tokens, so that prompts of similar length share one allocation."""

_DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Cache(Protocol):
    """The keys and values of one sequence, bound to a decoder's inputs and outputs."""

    cuts: bool
    """Whether `rewind` can go back to any length."""

    def reserve(self, length: int) -> None:
        """Start an empty sequence with room for `length` tokens."""

    def forget(self) -> None:
        """Drop the sequence's memory, which `reserve` takes anew and binds; until then no call follows."""

    def keep(self, length: int) -> None:
        """Remember the sequence as it is, of this many tokens."""

    def rewind(self, length: int) -> bool:
        """Cut the sequence to its first `length` tokens, and say whether that is possible."""

    def save(self, length: int) -> tuple[Array, ...] | None:
        """Copy what `rewind` would go back to; None where it could not."""

    def restore(self, length: int, arrays: tuple[Array, ...]) -> None:
        """Begin with what was saved, after `reserve`."""

    def before(self) -> None:
        """Bind what the next call reads and writes."""

    def after(self) -> None:
        """Keep what the call wrote."""


def make_cache(session: Any, binding: Any, device: Device) -> Cache:
    """The cache that a decoder's graph needs."""
    growing = session.get_modelmeta().custom_metadata_map.get(METADATA) == GROWING
    cache = (GrowingCache if growing else SharedCache)(session, binding, device)
    states = [node for node in _inputs(session) if _is_state(node)]
    return WithStates(cache, states, binding, device) if states else cache


class SharedCache:
    """Past and present bound to one buffer that is longer than the text, so that a step copies no cache.

    Old contents need no clearing: the attention mask's length says how much of the buffer is read.
    """

    cuts = True

    def __init__(self, session: Any, binding: Any, device: Device) -> None:
        self._binding, self._device = binding, device
        self._inputs = _cache_inputs(session)
        self._buffers: list[Any] = []
        self._capacity = 0

    def reserve(self, length: int) -> None:
        """Make longer buffers when `length` tokens do not fit."""
        if length <= self._capacity:
            return
        self._capacity = -(-length // _CACHE_STEP) * _CACHE_STEP
        self._buffers = []
        for node in self._inputs:
            buffer = _empty(node, self._capacity, self._device)
            self._buffers.append(buffer)
            self._binding.bind_ortvalue_input(node.name, buffer)
            self._binding.bind_ortvalue_output(_present(node.name), buffer)

    def forget(self) -> None:
        """Drop the buffers."""
        self._buffers, self._capacity = [], 0

    def keep(self, length: int) -> None:
        """Nothing: what was written stays until it is overwritten."""

    def rewind(self, length: int) -> bool:
        """Nothing is read after the length that the mask tells."""
        return True

    def save(self, length: int) -> tuple[Array, ...]:
        """Copy the beginning of each buffer."""
        return tuple(buffer.numpy()[:, :, :length].copy() for buffer in self._buffers)

    def restore(self, length: int, arrays: tuple[Array, ...]) -> None:
        """Write the beginning of each buffer."""
        for buffer, array in zip(self._buffers, arrays, strict=True):
            whole = buffer.numpy()  # the buffer's own memory on a CPU, else a copy
            whole[:, :, :length] = array
            if self._device.kind != "cpu":
                buffer.update_inplace(whole)

    def before(self) -> None:
        """Nothing: the buffers stay bound."""

    def after(self) -> None:
        """Nothing: the call wrote in place."""


class GrowingCache:
    """Every call reads the past and allocates the present, which is the past of the next."""

    cuts = True

    def __init__(self, session: Any, binding: Any, device: Device) -> None:
        self._binding, self._device = binding, device
        self._inputs = _cache_inputs(session)
        self._names = [output.name for output in session.get_outputs()]
        self._past: list[Any] = []

    def reserve(self, length: int) -> None:
        """Forget the sequence; memory is allocated call by call."""
        self._past = [_empty(node, 0, self._device) for node in self._inputs]

    def forget(self) -> None:
        """Drop the past."""
        self._past = []

    def keep(self, length: int) -> None:
        """Nothing: the past can be cut."""

    def rewind(self, length: int) -> bool:
        """Cut the past."""
        self.restore(length, self.save(length))
        return True

    def save(self, length: int) -> tuple[Array, ...]:
        """Copy the beginning of the past."""
        return tuple(past.numpy()[:, :, :length].copy() for past in self._past)

    def restore(self, length: int, arrays: tuple[Array, ...]) -> None:
        """Begin with a past."""
        self._past = [_copy(array, self._device) for array in arrays]

    def before(self) -> None:
        """Bind the past, and outputs without memory of their own: a shape that was bound once would stick."""
        for node, past in zip(self._inputs, self._past, strict=True):
            self._binding.bind_ortvalue_input(node.name, past)
            self._binding.bind_output(_present(node.name), self._device.kind, self._device.number)

    def after(self) -> None:
        """The present becomes the past."""
        written = dict(zip(self._names, self._binding.get_outputs(), strict=True))
        self._past = [written[_present(node.name)] for node in self._inputs]


class WithStates:
    """A cache of keys and values beside states of fixed size, which layers of linear attention have instead.

    A state is read from one buffer and written to another; the two change places after each call.
    """

    cuts = False

    def __init__(self, cache: Cache, states: list[Any], binding: Any, device: Device) -> None:
        self._cache, self._states, self._binding, self._device = cache, states, binding, device
        self._past: list[Any] = []
        self._present: list[Any] = []
        self._kept: tuple[int, list[Any]] | None = None

    def reserve(self, length: int) -> None:
        """Start an empty sequence, from states of zero."""
        self._cache.reserve(length)
        self._kept = None
        self._past = [_zeros(node, tuple(node.shape[1:]), self._device) for node in self._states]
        if not self._present:
            self._present = [_zeros(node, tuple(node.shape[1:]), self._device) for node in self._states]

    def forget(self) -> None:
        """Drop all of it."""
        self._cache.forget()
        self._past, self._present, self._kept = [], [], None

    def keep(self, length: int) -> None:
        """Copy the states."""
        self._kept = length, [past.numpy().copy() for past in self._past]

    def rewind(self, length: int) -> bool:
        """Go back to the states that were kept, if they are of this length; others are gone."""
        if self._kept is None or self._kept[0] != length:
            return False
        self._past = [_copy(past, self._device) for past in self._kept[1]]
        return self._cache.rewind(length)

    def save(self, length: int) -> tuple[Array, ...] | None:
        """Copy the cache, and the states that were kept, if they are of this length."""
        rest = self._cache.save(length)
        if self._kept is None or self._kept[0] != length or rest is None:
            return None
        return (*self._kept[1], *rest)

    def restore(self, length: int, arrays: tuple[Array, ...]) -> None:
        """Begin with states, which are kept anew, and a cache."""
        count = len(self._states)
        self._kept = length, list(arrays[:count])
        self._past = [_copy(past, self._device) for past in arrays[:count]]
        self._cache.restore(length, arrays[count:])

    def before(self) -> None:
        """Bind what the next call reads and writes."""
        self._cache.before()
        for node, past, present in zip(self._states, self._past, self._present, strict=True):
            self._binding.bind_ortvalue_input(node.name, past)
            self._binding.bind_ortvalue_output(_present(node.name), present)

    def after(self) -> None:
        """What was written is what the next call reads."""
        self._cache.after()
        self._past, self._present = self._present, self._past


def _inputs(session: Any) -> list[Any]:
    return [node for node in session.get_inputs() if node.name.startswith("past_key_values.")]


def _is_state(node: Any) -> bool:
    return not node.name.endswith((".key", ".value"))


def _cache_inputs(session: Any) -> list[Any]:
    """Those that grow with the text."""
    return [node for node in _inputs(session) if not _is_state(node)]


def _present(name: str) -> str:
    return name.replace("past_key_values", "present")


def _empty(node: Any, length: int, device: Device) -> Any:
    """Zeros [1, kv_heads, length, d] in the node's dtype."""
    return _zeros(node, (int(node.shape[1]), length, int(node.shape[3])), device)


def _zeros(node: Any, shape: tuple[int, ...], device: Device) -> Any:
    """Zeros [1, ...] in the node's dtype."""
    return _copy(np.zeros((1, *shape), _DTYPES[node.type]), device)


def _copy(array: Any, device: Device) -> Any:
    """An array's values in memory of their own, on a device: onnxruntime keeps a CPU array, and does not copy it."""
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), device.kind, device.number)
