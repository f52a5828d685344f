"""The child process of `engines`: create what an engine executes and compute something known with it.

Called as `python -m edgetune.doctor.trial MODULE DEVICE`. It prints one line that says what the engine is, or fails
with one on stderr that says what stopped it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

ADD_MODEL = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\r"
)
"""The ONNX model y = x + x for float32 [2] (IR 8, opset 13): trying onnxruntime must not take the onnx package."""


def _onnxruntime(engine: Any, provider: str) -> str:
    import numpy as np

    if provider not in engine.get_available_providers():
        raise RuntimeError(f"onnxruntime {engine.__version__} was built without {provider}")
    options = engine.SessionOptions()
    options.log_severity_level = 3
    if provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = engine.InferenceSession(ADD_MODEL, options, providers=[provider])
    if session.get_providers()[0] != provider:  # onnxruntime falls back to the CPU when a provider cannot load
        raise RuntimeError(f"onnxruntime {engine.__version__} cannot load {provider}")
    total = session.run(None, {"x": np.array([1, 2], np.float32)})[0]
    if total.tolist() != [2, 4]:
        raise RuntimeError(f"onnxruntime computes 1 + 1, 2 + 2 = {total.tolist()} with {provider}")
    return f"onnxruntime {engine.__version__}"


def _torch(engine: Any, device: str) -> str:
    if device == "cuda" and not engine.cuda.is_available():
        built = engine.version.cuda
        raise RuntimeError(
            f"torch {engine.__version__} " + (f"finds no CUDA {built} device" if built else "has no CUDA")
        )
    total = (engine.ones(2, 2, device=device) @ engine.ones(2, 2, device=device)).sum().item()
    if total != 8:
        raise RuntimeError(f"torch computes {total} for 8 on {device}")
    if device == "cpu":
        return f"torch {engine.__version__}"
    properties = engine.cuda.get_device_properties(0)
    capability = f"compute capability {properties.major}.{properties.minor}"
    return f"torch {engine.__version__}, {properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB"


def _tensorrt(engine: Any, device: str) -> str:
    builder = engine.Builder(engine.Logger(engine.Logger.ERROR))
    if builder is None:
        raise RuntimeError(f"TensorRT {engine.__version__} cannot create a builder")
    return f"TensorRT {engine.__version__}"


def _tensorrt_rtx(engine: Any, device: str) -> str:
    return _tensorrt(engine, device).replace("TensorRT", "TensorRT for RTX")


def _genai(engine: Any, device: str) -> str:
    return f"onnxruntime-genai {engine.__version__}"


_TRIALS = {
    "onnxruntime": _onnxruntime,
    "onnxruntime_genai": _genai,
    "torch": _torch,
    "tensorrt": _tensorrt,
    "tensorrt_rtx_bindings": _tensorrt_rtx,
}


def _main(module: str, device: str) -> int:
    try:
        if module == "tensorrt_rtx_bindings":
            importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")  # loads the libraries that the bindings need
        print(_TRIALS[module](importlib.import_module(module), device))
    except Exception as error:  # a probe reports whatever stops the engine
        print(" ".join(f"{error}".split()) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
