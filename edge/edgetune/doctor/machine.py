"""The machine as far as it decides what runs well: processor and its vector instructions, memory, NVIDIA devices."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

VECTOR_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "sve": "SVE",
}
"""Linux's names of the vector instructions that int8 and int4 kernels use, and what people call them."""


def describe_machine() -> dict[str, object]:
    """Return Python, operating system, processor, memory in bytes and NVIDIA devices; unknown values are None."""
    processor = _fields(Path("/proc/cpuinfo"))
    flags = (processor.get("flags") or processor.get("Features") or "").split()
    memory = _fields(Path("/proc/meminfo"))
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _device(),
        "processor": processor.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for flag, name in VECTOR_FLAGS.items() if flag in flags] if flags else None,
        "memory_bytes": _kibibytes(memory.get("MemTotal")),
        "memory_available_bytes": _kibibytes(memory.get("MemAvailable")),
        "nvidia": _nvidia(),
    }


def _fields(path: Path) -> dict[str, str]:
    """Return the first block of "key : value" lines of a file in /proc; nothing where the system has no such file."""
    if not path.is_file():
        return {}
    block = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _kibibytes(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _device() -> str | None:
    model = Path("/proc/device-tree/model")  # names the board on a Jetson or a Raspberry Pi
    return model.read_text(encoding="utf-8", errors="replace").rstrip("\0\n") if model.is_file() else None


def _nvidia() -> list[str] | None:
    """Return a line for each NVIDIA device, as the driver's own tool tells it; None without that tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return told.stdout.splitlines() if told.returncode == 0 else []
