"""Opening graphs as sessions of onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.onnx.mapped import MappedWeights
from edgetune_runtime.backends.values import Device
from edgetune_runtime.errors import BundleError, MissingDependency, install_command
from edgetune_runtime.memory import return_freed_memory

Array = npt.NDArray[Any]

INT8_ACTIVATIONS = 4
"""Accuracy level at which products with 4- and 8-bit weights round their input to int8 by block, the fast path."""


def onnxruntime() -> Any:
    """The library.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import onnxruntime as library
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "onnxruntime is not installed",
            hint=install_command("onnx", "edgetune-runtime") + " (or [onnx-gpu] for CUDA)",
        ) from error
    return library


def open_graph(
    path: Path,
    device: Device,
    threads: int | None,
    weights: Mapping[str, Array] | None = None,
    accuracy_level: int = INT8_ACTIVATIONS,
    *,
    arena: bool = False,
    mapped: MappedWeights | None = None,
) -> Any:
    """Open one graph as a session of onnxruntime.

    Args:
        path: of the graph.
        device: where it computes.
        threads: CPU threads of each operator; None is onnxruntime's own choice.
        weights: values of weights that the graph leaves out, by name.
        accuracy_level: of products whose weights the graph dequantizes with standard operators.
        arena: on a CPU, whether activations are kept in onnxruntime's arena, which calls have to empty.
        mapped: on a CPU, the graph's weights, kept for as long as the session; None lets onnxruntime map them.

    Raises:
        BundleError: onnxruntime cannot load it.
        MissingDependency: onnxruntime is not installed, or its provider for the device.
    """
    if not path.is_file():
        raise BundleError(f"{path}: the model file is missing")
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: the rest speaks of onnxruntime's own optimiser
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    if device.kind == "cpu":
        options.enable_cpu_mem_arena = arena  # it gives nothing back unless a call asks for it
        return_freed_memory()
        if mapped is not None:
            mapped.give(options, ort.__version__)
    if threads is not None:
        options.intra_op_num_threads = threads
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device.kind]
    settings: Any = (
        [provider] if device.kind == "cpu" else [(provider, {"device_id": device.number}), "CPUExecutionProvider"]
    )
    gpu = install_command("onnx-gpu", "edgetune-runtime")
    missing = MissingDependency(
        f"onnxruntime {ort.__version__} cannot run on {device.kind}: its {provider} is not there",
        hint=f"pip uninstall onnxruntime, then {gpu}, with its CUDA libraries",
    )
    if provider not in ort.get_available_providers():
        raise missing
    try:
        session = ort.InferenceSession(str(path), options, providers=settings)
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise BundleError(f"{path}: onnxruntime {ort.__version__} cannot load it: {str(error)[:300]}") from error
    if provider not in session.get_providers():  # without CUDA's libraries it falls back to the CPU with a warning
        raise missing
    return session


def require_input(graph: Any, name: str, path: Path) -> Any:
    """An input of an opened graph.

    Raises:
        BundleError: there is none of this name.
    """
    found = {node.name: node for node in graph.get_inputs()}
    if name not in found:
        raise BundleError(f"{path}: the graph has no input {name}", hint="export the bundle again")
    return found[name]
