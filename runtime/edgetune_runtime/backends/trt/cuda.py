"""The few calls of CUDA's runtime library that an engine needs, by ctypes: memory, one stream, one-launch graphs.

TensorRT brings no memory management of its own, and the packages that wrap CUDA are as large as this file is small.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from edgetune_runtime.errors import EdgetuneError, MissingDependency

Array = npt.NDArray[Any]

# Values of CUDA's C enumerations, which are part of its binary interface.
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_CAPTURE_THIS_THREAD = 1
_OUT_OF_MEMORY = 2

_MAJORS = (13, 12, 11)


class Device(Protocol):
    """Memory and a stream of work on one device. Addresses are integers, as TensorRT takes them."""

    @property
    def stream(self) -> int:
        """Handle of the stream that everything runs on."""

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes, all zero; they live as long as the device object."""

    def zero(self, address: int, size: int) -> None:
        """Set bytes to zero, after the work queued so far."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device, after the work queued so far."""

    def download(self, array: Array, address: int) -> None:
        """Wait for the queued work and copy from the device into a contiguous array."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues, without running it; the result queues all of it in one launch."""


class Cuda:
    """Implements `Device` on a GPU.

    Args:
        number: of the GPU.

    Raises:
        MissingDependency: no CUDA library, no driver, or no such GPU.
    """

    def __init__(self, number: int = 0) -> None:
        self._library = _load()
        count = ctypes.c_int()
        status = self._library.cudaGetDeviceCount(ctypes.byref(count))
        if status or not count.value:
            reason = self._describe(status) if status else "no device was found"
            raise MissingDependency(
                f"no usable NVIDIA GPU here: {reason}", hint="nvidia-smi shows what the driver sees"
            )
        if number >= count.value:
            raise MissingDependency(f"no GPU number {number}: the machine has {count.value}")
        self._call("cudaSetDevice", ctypes.c_int(number))
        self._number = number
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self._stream = stream
        self._allocated: list[int] = []
        self._graphs: list[ctypes.c_void_p] = []

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.value or 0)

    @property
    def capability(self) -> str:
        """Compute capability, such as "8.7"."""
        numbers = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            value = ctypes.c_int()
            self._call(
                "cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(self._number)
            )
            numbers.append(str(value.value))
        return ".".join(numbers)

    def allocate(self, size: int) -> int:
        """New bytes, all zero."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)), what=f"{size / 1e6:.0f} MB")
        assert address.value is not None
        self._allocated.append(address.value)
        self.zero(address.value, size)
        return address.value

    def zero(self, address: int, size: int) -> None:
        """Set bytes to zero."""
        self._call("cudaMemsetAsync", ctypes.c_void_p(address), ctypes.c_int(0), ctypes.c_size_t(size), self._stream)

    def upload(self, address: int, array: Array) -> None:
        """Copy to the device. The array may change afterwards: CUDA stages pageable memory before it returns."""
        self._copy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def download(self, array: Array, address: int) -> None:
        """Copy from the device and wait."""
        self._copy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST)
        self._call("cudaStreamSynchronize", self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture a CUDA graph."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamBeginCapture", self._stream, ctypes.c_int(_CAPTURE_THIS_THREAD))
        try:
            work()
        finally:
            self._call("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self._call("cudaGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """Give memory, graphs and the stream back."""
        self._call("cudaStreamSynchronize", self._stream)
        for graph in self._graphs:
            self._call("cudaGraphExecDestroy", graph)
        for address in self._allocated:
            self._call("cudaFree", ctypes.c_void_p(address))
        self._call("cudaStreamDestroy", self._stream)
        self._graphs, self._allocated = [], []

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        arguments = ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind)
        self._call("cudaMemcpyAsync", *arguments, self._stream)

    def _call(self, name: str, *arguments: Any, what: str = "") -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            self._library.cudaGetLastError()  # forgotten, or another user of CUDA in this process would be told it
            fix = "free GPU memory, or export with a smaller --max-length" if status == _OUT_OF_MEMORY else None
            raise EdgetuneError(f"CUDA: {name}{f' of {what}' if what else ''}: {self._describe(status)}", hint=fix)

    def _describe(self, status: int) -> str:
        text: bytes = self._library.cudaGetErrorString(ctypes.c_int(status))
        return text.decode()


def _load() -> ctypes.CDLL:
    """CUDA's runtime library: of the system, or of a pip package."""
    for name in _candidates():
        with suppress(OSError):
            library = ctypes.CDLL(name)
            library.cudaGetErrorString.restype = ctypes.c_char_p
            return library
    raise MissingDependency(
        "CUDA's runtime library (libcudart) was not found",
        hint="install CUDA or JetPack, or pip install nvidia-cuda-runtime",
    )


def _candidates() -> Iterator[str]:
    for major in _MAJORS:
        yield f"libcudart.so.{major}"
    yield "/usr/local/cuda/lib64/libcudart.so"
    for entry in sys.path:
        for pattern in ("nvidia/*/lib/libcudart.so.*", "onnxruntime_ep_nv_tensorrt_rtx/libcudart.so.*"):
            yield from map(str, sorted(Path(entry).glob(pattern), reverse=True))
