"""What `edgetune doctor` finds out: the machine, the packages that each part needs, and the engines that really run."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from edgetune.doctor.engines import Probe, probe_engine
from edgetune.doctor.packages import Package, packages_of_extra
from edgetune_runtime.errors import install_command


@dataclass(frozen=True)
class Feature:
    """Something that a machine can or cannot do: its name, a line on what it is found to be, and how to get it."""

    name: str
    works: bool
    detail: str
    install: str
    packages: tuple[Package, ...] = ()


_EXTRAS = ("train", "export", "bench")
_ENGINES = {
    "onnx": (Probe("onnxruntime", "CPUExecutionProvider"), install_command("onnx", "edgetune-runtime")),
    "onnx-cuda": (
        Probe("onnxruntime", "CUDAExecutionProvider"),
        "pip uninstall onnxruntime && " + install_command("onnx-gpu", "edgetune-runtime"),
    ),
    "torch": (Probe("torch", "cpu"), install_command("train")),
    "torch-cuda": (
        Probe("torch", "cuda"),
        "pip install --force-reinstall torch (on a machine with an NVIDIA GPU; PyPI's Linux wheels have CUDA)",
    ),
    "genai": (Probe("onnxruntime_genai", ""), "pip install onnxruntime-genai"),
    "tensorrt": (
        Probe("tensorrt", ""),
        "apt-get install python3-libnvinfer (from the device's JetPack or CUDA sources)",
    ),
    "tensorrt-rtx": (
        Probe("tensorrt_rtx_bindings", ""),
        "pip install --no-deps onnxruntime-ep-nv-tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings",
    ),
}
FEATURES = (*_EXTRAS, *_ENGINES)
"""Every name that `--require` takes."""


def examine(names: tuple[str, ...] = FEATURES, *, progress: Callable[[str], object] | None = None) -> list[Feature]:
    """Find out which features this environment has, in the order of `names`.

    Engines are tried in processes of their own, where an engine that crashes harms nothing.

    Args:
        names: features to look at, out of `FEATURES`.
        progress: called with the name of each feature when it is known.
    """
    found: dict[str, Feature] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = {pool.submit(partial(_examine, name)): name for name in names}
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            if progress:
                progress(jobs[job])
    return [found[name] for name in names]


def _examine(name: str) -> Feature:
    if name in _ENGINES:
        probe, install = _ENGINES[name]
        works, detail = probe_engine(probe)
        return Feature(name, works, detail, install)
    packages = packages_of_extra("edgetune", name)
    lacking = [package for package in packages if not package.fits]
    detail = ", ".join(package.complaint for package in lacking) or f"{len(packages)} packages present"
    return Feature(name, not lacking, detail, install_command(name), tuple(packages))
