"""The models of the peers of `image_to_box.py`: each converted once from the same checkpoint of random weights."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parents[1] / "studies"


@dataclass(frozen=True)
class Size:
    """A size to measure at.

    Attributes:
        shape: its name in `benchmarks/studies/shapes.py`.
        picture: width and height.
    """

    shape: str
    picture: tuple[int, int]


SIZES = {
    "tiny": Size("tiny-qwen3-vl", (256, 256)),
    "0.3b": Size("qwen2.5-vl-0.29b", (512, 512)),
    "2b": Size("qwen3-vl-2b", (1024, 768)),
}


@dataclass(frozen=True)
class Job:
    """What is converted where.

    Attributes:
        size: of the model.
        tokenizer: folder of the tokenizer.
        models: folder of the checkpoint and the converted models.
        environments: folder of the environments.
        threads: that a model is told, where it has to know them ahead.
        context: the longest sequence.
    """

    size: Size
    tokenizer: Path
    models: Path
    environments: Path
    threads: int
    context: int


def model(job: Job, name: str) -> Path:
    """The folder of a converted model, written if it is not there.

    Raises:
        Unavailable: it cannot be written, or its environment cannot be made.
    """
    folder = job.models / name
    if not folder.is_dir():
        print(f"writing {folder}", file=sys.stderr, flush=True)
        partial = folder.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        CONVERTERS[name](job, partial)
        partial.rename(folder)
    return folder


def size_mb(folder: Path) -> float:
    """Megabytes (10^6 bytes) of the files that a folder holds itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoint(job: Job, folder: Path) -> None:
    words = (job.size.shape, "--tokenizer", job.tokenizer, "--output", folder)
    _run(sys.executable, STUDIES / "shapes.py", *words)


def _edgetune(job: Job, folder: Path, *more: str) -> None:
    words = ("--checkpoint", model(job, "checkpoint"), "--output", folder, "--precision", "int4", "--check", "fast")
    _run(sys.executable, "-m", "edgetune", "export", *words, *more)


def _for_openvino(job: Job, folder: Path) -> None:
    _edgetune(job, folder, "--target", "openvino")


def _openvino(job: Job, folder: Path) -> None:
    python = environments.python(job.environments, "openvino")
    words = ("-m", model(job, "checkpoint"), "--task", "image-text-to-text", "--weight-format", "int4", folder)
    _run(python.with_name("optimum-cli"), "export", "openvino", *words)


def _llamacpp(job: Job, folder: Path) -> None:
    """Q4_0, which llama.cpp computes fastest with on most CPUs, and 8 bits for the vision encoder."""
    python = environments.python(job.environments, "llamacpp")
    source = environments.sources(environments.environment(job.environments, "llamacpp"))
    write = (python, HERE / "write_gguf.py", source, model(job, "checkpoint"))
    folder.mkdir()
    whole = folder / "whole.gguf"
    _run(*write, "--outtype", "bf16", "--outfile", whole)
    _run(*write, "--mmproj", "--outtype", "q8_0", "--outfile", folder / "mmproj.gguf")
    quantize = environments.tools(job.environments) / "llama-quantize"
    _run(quantize, whole, folder / "model.gguf", "Q4_0", job.threads)
    whole.unlink()


def _genai(job: Job, folder: Path) -> None:
    python = environments.python(job.environments, "genai")
    _run(python, HERE / "write_genai.py", model(job, "edgetune"), folder, job.context)


CONVERTERS: dict[str, Callable[[Job, Path], None]] = {
    "checkpoint": _checkpoint,
    "edgetune": _edgetune,
    "edgetune-openvino": _for_openvino,
    "openvino": _openvino,
    "llamacpp": _llamacpp,
    "genai": _genai,
}


def _run(*command: Any) -> None:
    words = [str(word) for word in command]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    if Path(words[0]).parent != Path(sys.executable).parent:
        offline.pop("PYTHONPATH", None)  # which is for this interpreter's packages
    done = subprocess.run(words, capture_output=True, text=True, env=offline, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in reversed(lines) if "rror" in line), lines[-1])
        raise environments.Unavailable(f"{Path(words[0]).name} {' '.join(words[1:4])}: {reason.strip()[:300]}")
