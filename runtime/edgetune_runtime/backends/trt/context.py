"""One TensorRT engine in memory, and one use of it (an optimization profile) with buffers of fixed place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.trt.cuda import Device
from edgetune_runtime.backends.trt.library import Library, make_logger
from edgetune_runtime.errors import BundleError, EdgetuneError, InputError

if TYPE_CHECKING:
    import tensorrt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


class Engine:
    """A deserialized engine and what it says of its inputs and outputs; -1 stands for a free dimension.

    Args:
        module: the TensorRT module that made the engine.
        engine: TensorRT's object.
    """

    def __init__(self, module: Any, engine: tensorrt.ICudaEngine) -> None:
        self.engine = engine
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == module.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == module.TensorIOMode.OUTPUT]
        self.shapes: dict[str, Shape] = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        self.dtypes: dict[str, np.dtype[Any]] = {
            name: np.dtype(module.nptype(engine.get_tensor_dtype(name))) for name in names
        }

    @classmethod
    def load(cls, library: Library, path: Path) -> Engine:
        """Read an engine file onto the GPU.

        Raises:
            BundleError: TensorRT refuses the file.
        """
        logger, errors = make_logger(library.module)
        runtime = library.module.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            reason = "; ".join(errors)[:300] or "no reason given"
            raise BundleError(
                f"{path}: {library.title} cannot load it: {reason}", hint="build it again: edgetune-run build-engine"
            )
        loaded = cls(library.module, engine)
        loaded._owners = (runtime, logger)  # TensorRT does not keep what an engine came from alive
        return loaded

    _owners: tuple[Any, ...] = ()

    def bytes_of(self, name: str, shape: Shape) -> int:
        """Size in bytes of a tensor of this shape."""
        return int(np.prod(shape)) * int(self.dtypes[name].itemsize)


class Context:
    """An engine under one optimization profile. Buffers are as large as the profile allows and never move.

    Args:
        engine: the engine.
        profile: number of the profile.
        device: where it runs.
        shared: addresses of tensors whose memory belongs to somebody else, by name.
    """

    def __init__(self, engine: Engine, profile: int, device: Device, shared: Mapping[str, int]) -> None:
        self.engine = engine
        self._device = device
        self._context = engine.engine.create_execution_context()
        if self._context is None:
            raise EdgetuneError("TensorRT could not make an execution context", hint="free GPU memory")
        if not self._context.set_optimization_profile_async(profile, device.stream):
            raise EdgetuneError(f"the engine has no optimization profile {profile}")
        # A profile speaks of free dimensions only.
        free = [name for name in engine.inputs if -1 in engine.shapes[name]]
        ranges = {name: engine.engine.get_tensor_profile_shape(name, profile) for name in free}
        self.largest = {name: tuple(ranges[name][2]) if name in free else engine.shapes[name] for name in engine.inputs}
        for name in free:
            self._set_shape(name, self.largest[name])
        self.addresses: dict[str, int] = {}
        for name in (*engine.inputs, *engine.outputs):
            self.bind(name, shared[name] if name in shared else device.allocate(self._bytes(name)))

    def bind(self, name: str, address: int) -> None:
        """Put a tensor at an address."""
        self.addresses[name] = address
        self._context.set_tensor_address(name, address)

    def upload(self, name: str, array: Array) -> None:
        """Set an input and, with it, its free dimensions.

        Raises:
            InputError: the array is larger than the profile allows.
        """
        limit = self.largest[name]
        if len(array.shape) != len(limit) or any(size > most for size, most in zip(array.shape, limit, strict=True)):
            raise InputError(
                f"{name} of shape {list(array.shape)}: the engine takes at most {list(limit)}",
                hint="use a smaller image or prompt, or export for larger ones",
            )
        self._set_shape(name, array.shape)
        self._device.upload(self.addresses[name], np.ascontiguousarray(array, self.engine.dtypes[name]))

    def zero(self, name: str, shape: Shape) -> None:
        """Fill an input with zeros."""
        self._set_shape(name, shape)
        self._device.zero(self.addresses[name], self.engine.bytes_of(name, shape))

    def execute(self) -> None:
        """Queue the network."""
        if not self._context.execute_async_v3(self._device.stream):
            raise EdgetuneError("TensorRT failed to run the engine")

    def download(self, name: str) -> Array:
        """Wait and fetch an output in the shape that the inputs give it."""
        array = np.empty(tuple(self._context.get_tensor_shape(name)), self.engine.dtypes[name])
        self._device.download(array, self.addresses[name])
        return array

    def _set_shape(self, name: str, shape: Shape) -> None:
        if -1 in self.engine.shapes[name] and not self._context.set_input_shape(name, shape):
            raise EdgetuneError(f"the engine does not take {name} of shape {list(shape)}")

    def _bytes(self, name: str) -> int:
        return self.engine.bytes_of(name, tuple(self._context.get_tensor_shape(name)))
