"""What the NVIDIA driver says about the GPU that this process computes on, through its management library (NVML).

The library comes with the driver, so nothing has to be installed; without it, or where it does not know (the GPU of a
Jetson has no memory of its own), every answer is None.
"""

from __future__ import annotations

import ctypes
import os

_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_SENSOR, _CLOCK = 0, 1  # NVML_TEMPERATURE_GPU, NVML_CLOCK_SM


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Gpu:
    """The first GPU that CUDA may use: `CUDA_VISIBLE_DEVICES` holds for it, by number or by UUID."""

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        self._nvml: ctypes.CDLL | None
        try:
            self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            self._nvml = None
        if self._nvml is not None and (self._nvml.nvmlInit_v2() != 0 or not self._find(self._nvml)):
            self._nvml = None

    def used(self) -> int | None:
        """Bytes in use on the whole device, by any process."""
        memory = _Memory()
        if self._nvml is None or self._nvml.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)) != 0:
            return None
        return int(memory.used)

    def name(self) -> str | None:
        """The model, e.g. "NVIDIA H200"."""
        text = ctypes.create_string_buffer(_NAME_BYTES)
        if self._nvml is None or self._nvml.nvmlDeviceGetName(self._handle, text, _NAME_BYTES) != 0:
            return None
        return text.value.decode(errors="replace")

    def joules(self) -> float | None:
        """Energy since the driver was loaded, of the whole device; GPUs before Volta do not count it."""
        energy = ctypes.c_ulonglong()
        if self._nvml is None or self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(energy)):
            return None
        return energy.value / 1e3

    def watts(self) -> float | None:
        """Power of the whole device, over the last moment that the driver takes for its mean."""
        power = ctypes.c_uint()
        if self._nvml is None or self._nvml.nvmlDeviceGetPowerUsage(self._handle, ctypes.byref(power)) != 0:
            return None
        return power.value / 1e3

    def celsius(self) -> float | None:
        """Temperature of the die."""
        degrees = ctypes.c_uint()
        if self._nvml is None or self._nvml.nvmlDeviceGetTemperature(self._handle, _SENSOR, ctypes.byref(degrees)):
            return None
        return float(degrees.value)

    def megahertz(self) -> float | None:
        """Clock of the multiprocessors."""
        clock = ctypes.c_uint()
        if self._nvml is None or self._nvml.nvmlDeviceGetClockInfo(self._handle, _CLOCK, ctypes.byref(clock)) != 0:
            return None
        return float(clock.value)

    def _find(self, nvml: ctypes.CDLL) -> bool:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
        if first.startswith("GPU-"):
            found = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(self._handle))
        elif first.isdigit():
            found = nvml.nvmlDeviceGetHandleByIndex_v2(int(first), ctypes.byref(self._handle))
        else:
            return False  # an empty list hides every GPU; parts of a GPU (MIG) have no handle of this kind
        return bool(found == 0)
