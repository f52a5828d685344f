"""The export formats by name. An exporter is imported only when its format is asked for.

A new format is one line here and a function `(job: ExportJob) -> result`, see `edgetune_export.job`. Another
distribution adds one by an entry point of the group `edgetune.exporters`, named as the format, for a `Format`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgetune_runtime.plugins import Plugins

if TYPE_CHECKING:
    from edgetune_export.job import ExportJob

Exporter = Callable[["ExportJob"], dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """One kind of bundle.

    Attributes:
        help: what it is for, in a few words.
        exporter: "module:function".
        steps: what its exporter calls `job.progress` with, in order, "parity" included.
        needs_weights: whether it can only be written from a weight set.
        purposes: what it can be written for: "lean", our runtime without torch; "server", a Hugging Face checkpoint.
    """

    help: str
    exporter: str
    steps: tuple[str, ...]
    needs_weights: bool = False
    purposes: tuple[str, ...] = ("lean",)

    def load(self) -> Exporter:
        """Import the exporter."""
        module, _, function = self.exporter.partition(":")
        exporter: Exporter = getattr(import_module(module), function)
        return exporter


_BOTH = ("lean", "server")
_PACKED = ("checkpoint", "vision", "decoder", "embeddings", "parity")

FORMATS = {
    "onnx": Format(
        "onnxruntime, CPU and CUDA",
        "edgetune_export.onnx_bundle:export_onnx",
        ("vision", "decoder", "embeddings", "parity"),
    ),
    "gptq": Format(
        "GPTQ checkpoint for GPU servers, runs on CPU too",
        "edgetune_export.packed_bundle:export_gptq",
        _PACKED,
        needs_weights=True,
        purposes=_BOTH,
    ),
    "awq": Format(
        "AWQ checkpoint for GPU servers, runs on CPU too",
        "edgetune_export.packed_bundle:export_awq",
        _PACKED,
        needs_weights=True,
        purposes=_BOTH,
    ),
    "compressed-tensors": Format(
        "compressed-tensors checkpoint for GPU servers, runs on CPU too",
        "edgetune_export.packed_bundle:export_compressed",
        _PACKED,
        needs_weights=True,
        purposes=_BOTH,
    ),
    "trt": Format(
        "TensorRT on Jetson and RTX GPUs",
        "edgetune_export.trt_bundle:export_trt",
        ("vision", "embeddings", "decoder", "parity", "engines"),
    ),
}

CHECKPOINTS = ("compressed-tensors", "awq", "gptq")
"""Formats of bundles that are checkpoints; where servers read several, the first is proposed."""

OTHERS: Plugins[Format] = Plugins(
    "edgetune.exporters",
    "format",
    "an edgetune_export.formats.Format",
    lambda found: isinstance(found, Format),
    built_in=FORMATS,
)
"""Formats that installed packages add."""


def find_format(name: str) -> Format:
    """Return the format of this name, of ours or of another package.

    Raises:
        InputError: there is none, or the package is broken.
        MissingDependency: the package, or something that it needs, cannot be imported.
    """
    return FORMATS[name] if name in FORMATS else OTHERS.load(name)
