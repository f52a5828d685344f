"""TensorRT's interface over onnxruntime and main memory, for what cannot run without an NVIDIA GPU.

`HostDevice` is a device whose addresses are this process's own memory; `HostEngine` and its contexts have the methods
that the backend calls, read and write at the addresses they are given, and refuse what TensorRT refuses: shapes outside
the profile, a past and a present that should be one buffer but are two, and the other way round. That the methods
themselves exist, under these names, is tested against the real bindings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgetune_runtime.backends.trt.context import Engine

Array = npt.NDArray[Any]
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class HostDevice:
    """A `Device` in main memory. Work runs when it is queued; while recording it is only noted."""

    stream = 1

    def __init__(self) -> None:
        self.blocks: dict[int, Array] = {}
        self.launches = 0
        self.recording: list[Callable[[], None]] | None = None

    def allocate(self, size: int) -> int:
        block = np.zeros(size, np.uint8)
        address = int(block.ctypes.data)
        self.blocks[address] = block
        return address

    def zero(self, address: int, size: int) -> None:
        view(address, (size,), np.uint8)[:] = 0

    def upload(self, address: int, array: Array) -> None:
        assert array.nbytes <= self.blocks[address].nbytes
        view(address, array.shape, array.dtype)[...] = array

    def download(self, array: Array, address: int) -> None:
        array[...] = view(address, array.shape, array.dtype)

    def queue(self, work: Callable[[], None]) -> None:
        """Run it, or note it while recording."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recording = []
        work()
        noted, self.recording = self.recording, None

        def launch() -> None:
            self.launches += 1
            for step in noted:
                step()

        return launch


def view(address: int, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """The memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, np.dtype(dtype)).reshape(shape)


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


def nptype(dtype: Any) -> Any:
    """TensorRT's translation of its dtypes; here they are numpy's already."""
    return dtype


class HostEngine:
    """`ICudaEngine` of an ONNX graph."""

    def __init__(
        self, path: Path, profiles: Sequence[Mapping[str, Any]], device: HostDevice, *, in_place: bool
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.inputs: dict[str, Any] = {node.name: node for node in self.session.get_inputs()}
        self.nodes: dict[str, Any] = {**self.inputs, **{node.name: node for node in self.session.get_outputs()}}
        self.profiles, self.device, self.in_place = profiles, device, in_place

    @property
    def num_io_tensors(self) -> int:
        return len(self.nodes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.nodes[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return _NUMPY[self.nodes[name].type]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile][name]]

    def create_execution_context(self) -> HostContext:
        return HostContext(self)


class HostContext:
    """`IExecutionContext`: runs the graph on whatever lies at the addresses."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return profile < len(self.engine.profiles) and stream == self.engine.device.stream

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert -1 in self.engine.get_tensor_shape(name)
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)), (name, shape, low, high)
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self.engine.device.blocks
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        known = self.engine.get_tensor_shape(name)
        if -1 not in known:
            return known
        if name in self.engine.inputs:
            return self.shapes[name]
        merged = self.shapes["pixel_values"][0] // 4  # the vision encoder's tokens
        return (merged, *known[1:])

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.engine.device.stream
        addresses = dict(self.addresses)
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.inputs}
        self.engine.device.queue(lambda: self._run(addresses, shapes))
        return True

    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        engine = self.engine
        for name in engine.inputs:
            if name.startswith("past_key_values."):
                same = addresses[name] == addresses[name.replace("past_key_values", "present")]
                assert same == engine.in_place
        feeds = {
            name: view(addresses[name], shapes[name], engine.get_tensor_dtype(name)).copy() for name in engine.inputs
        }
        names = [name for name in engine.nodes if name not in engine.inputs]
        for name, value in zip(names, engine.session.run(names, feeds), strict=True):
            view(addresses[name], value.shape, value.dtype)[...] = value


def host_engine(
    path: Path, profiles: Sequence[Mapping[str, Any]], device: HostDevice, *, in_place: bool = False
) -> Engine:
    """The backend's view of a graph that runs in onnxruntime."""
    import host_tensorrt

    engine: Any = HostEngine(path, profiles, device, in_place=in_place)
    return Engine(host_tensorrt, engine)
