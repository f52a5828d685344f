"""Describe the machine and the software of a measurement, so that results of two machines can be compared later."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgetune_runtime.gpu import Gpu
from edgetune_runtime.threads import usable_cores
from edgetune_runtime.typed_json import Bytes, Number

_BUSY = 0.5  # running processes for each core from which measuring is disturbed
_PACKAGES = (
    "edgetune",
    "edgetune-runtime",
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "safetensors",
    "torch",
    "transformers",
    "peft",
)


@dataclass(frozen=True)
class Machine:
    """Where rows were measured (`bench.machine.describe`); None where the system does not tell."""

    cpu: str
    gpu: str | None = None
    arch: str | None = None
    cores: Number | None = None
    usable_cores: Number | None = None
    memory_bytes: Bytes | None = None
    governor: str | None = None
    board: str | None = None
    os: str | None = None


def versions() -> dict[str, str]:
    """Installed versions of everything that shapes a measurement; packages that are absent are left out."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version()} | {name: text for name, text in found.items() if text is not None}


def describe() -> Machine:
    """This machine, as far as the system tells."""
    return Machine(
        cpu=_cpu_model(),
        gpu=Gpu().name(),
        arch=platform.machine(),
        cores=os.cpu_count(),
        usable_cores=usable_cores(),
        memory_bytes=_memory(),
        governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        board=_read(Path("/proc/device-tree/model")),  # a Jetson or other single-board computer names itself here
        os=platform.platform(),
    )


def busy_remark() -> str | None:
    """A line for a machine that works on something else, whose times will be slow and noisy; None for an idle one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = usable_cores()
    if load < _BUSY * cores:
        return None
    return f"this machine is busy (load average {load:.1f} on {cores} cores): answers will be slow, their times noisy"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = _read(Path("/proc/cpuinfo")) or ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip("\0\n ")
    except OSError:
        return None
