"""The environments of the peers of `image_to_box.py`, each made once in a folder; edgetune runs in the caller's own."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "readers"))
from reader_environments import Unavailable, mend_torchvision, once, pip, run

__all__ = ["LLAMA_CPP", "Unavailable", "environment", "python", "tools"]

OPENVINO = ("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "optimum-intel==2.2.0", "nncf==3.4.0")
OPTIMUM_TRANSFORMERS = "transformers==5.0.0"
"""The newest that optimum-intel 2.2.0 exports Qwen2.5-VL and Qwen3-VL with; it asks for a newer one itself."""
LLAMA_CPP = "llama-cpp-python==0.3.36"
"""Its source distribution has llama.cpp's sources, commit 0c1e57098."""
TRANSFORMERS = "transformers==5.23.0"


def environment(root: Path, name: str) -> Path:
    """The folder of a peer's environment, made if it is not there yet.

    Raises:
        Unavailable: it cannot be made here.
    """
    return once(root / name, _RECIPES[name], Path(__file__))


def python(root: Path, name: str) -> Path:
    """The interpreter of a peer's environment. Raises as `environment`."""
    return environment(root, name) / "bin" / "python"


def tools(root: Path) -> Path:
    """The folder of llama.cpp's programs. Raises as `environment`."""
    return environment(root, "llamacpp") / "build" / "bin"


def _venv(folder: Path) -> None:
    run(sys.executable, "-m", "venv", folder)


def _openvino(folder: Path) -> None:
    _venv(folder)
    pip(folder, *OPENVINO, "pillow")
    pip(folder, OPTIMUM_TRANSFORMERS)
    mend_torchvision(folder)


def _genai(folder: Path) -> None:
    """Without torch: onnx is for `write_genai.py`."""
    _venv(folder)
    command = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    packages = ("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "onnx==1.23.2", "numpy", "pillow")
    run(*command, "install", "--quiet", *packages)


def _transformers(folder: Path) -> None:
    _venv(folder)
    pip(folder, TRANSFORMERS, "pillow")


def _llamacpp(folder: Path) -> None:
    """llama.cpp built for this processor, and what its converter imports."""
    _venv(folder)
    pip(folder, TRANSFORMERS, "sentencepiece", "protobuf", "pyyaml", "requests", "tqdm")
    # Which the source distribution's own build wants before it tells its name.
    pip(folder, "scikit-build-core[pyproject]", "cmake", "ninja")
    words = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--quiet", "--dest", folder, LLAMA_CPP)
    run(folder / "bin" / "python", "-m", "pip", "download", *words)
    (packed,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    packed.unlink()
    source, build = sources(folder), folder / "build"
    variables = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    switches = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF")
    no_tests = ("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF")
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", *switches, *no_tests, variables=variables)
    targets = ("--target", "llama-server", "llama-quantize")
    jobs = str(len(os.sched_getaffinity(0)))
    run("cmake", "--build", build, "--parallel", jobs, *targets, variables=variables)


def sources(folder: Path) -> Path:
    """llama.cpp's sources in its environment."""
    (source,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    return source


_RECIPES: dict[str, Callable[[Path], None]] = {
    "openvino": _openvino,
    "llamacpp": _llamacpp,
    "genai": _genai,
    "transformers": _transformers,
}
