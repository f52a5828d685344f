"""The CUDA calls: for real where there is a GPU, and what is said where there is none."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from edgetune_runtime.backends.trt import cuda
from edgetune_runtime.backends.trt.cuda import Cuda
from edgetune_runtime.errors import EdgetuneError, MissingDependency


@pytest.fixture
def gpu() -> Cuda:
    try:
        return Cuda()
    except MissingDependency as error:
        pytest.skip(str(error))


def test_without_a_gpu_the_message_says_so() -> None:
    try:
        device = Cuda()
    except MissingDependency as error:
        assert "no usable NVIDIA GPU here: " in str(error) or "libcudart" in str(error)
        assert error.hint is not None and ("nvidia-smi" in error.hint or "install" in error.hint)
    else:
        assert device.capability.replace(".", "").isdigit()
        with pytest.raises(MissingDependency, match="no GPU number 99"):
            Cuda(99)


def test_without_the_library_the_message_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "_candidates", lambda: iter([str(tmp_path / "libcudart.so.13")]))
    with pytest.raises(MissingDependency, match=r"\(libcudart\) was not found"):
        Cuda()


def test_memory_is_zero_and_keeps_what_is_copied(gpu: Cuda) -> None:
    values = np.arange(1000, dtype=np.float16)
    back = np.ones_like(values)
    address = gpu.allocate(values.nbytes)
    gpu.download(back, address)
    np.testing.assert_array_equal(back, 0)
    gpu.upload(address, values)
    values += 1  # the copy was taken
    gpu.download(back, address)
    np.testing.assert_array_equal(back, np.arange(1000))
    gpu.zero(address + 2, 4)
    gpu.download(back, address)
    assert back[:4].tolist() == [0, 0, 0, 3]
    gpu.close()


def test_a_recorded_graph_runs_once_a_launch(gpu: Cuda) -> None:
    source, target = gpu.allocate(400), gpu.allocate(400)
    values, back = np.zeros(100, np.int32), np.zeros(100, np.int32)

    def copy() -> None:  # what an engine does, as far as a graph is concerned: work on the stream at fixed addresses
        arguments = ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(400), ctypes.c_int(3)
        gpu._call("cudaMemcpyAsync", *arguments, ctypes.c_void_p(gpu.stream))

    launch = gpu.record(copy)
    for number in (7, 9):
        values[:] = number
        gpu.upload(source, values)
        gpu.download(back, target)
        assert (back != number).all()  # recording and uploading have not run it
        launch()
        gpu.download(back, target)
        assert (back == number).all()
    gpu.close()


def test_too_much_memory_is_told(gpu: Cuda) -> None:
    with pytest.raises(EdgetuneError, match=r"cudaMalloc of \d+ MB: out of memory") as caught:
        gpu.allocate(1 << 50)
    assert caught.value.hint is not None and "--max-length" in caught.value.hint
    gpu.close()


def test_a_failure_is_not_left_for_others_to_find(gpu: Cuda) -> None:
    with pytest.raises(EdgetuneError, match="out of memory"):
        gpu.allocate(1 << 50)
    assert gpu._library.cudaGetLastError() == 0  # torch, in the same process, would raise it from its next call
    gpu.close()
