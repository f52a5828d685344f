"""The vision encoder under onnxruntime, with memory that is its own for the time of one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune_runtime.backends.base import Arrays, Device, ImageFeatures
from edgetune_runtime.backends.onnx.graphs import onnxruntime, open_graph
from edgetune_runtime.backends.onnx.mapped import MappedWeights

SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
"""Setting of a call: the arena gives back what it holds when the call is over."""


class VisionEncoder:
    """One session of vision_encoder.onnx.

    On a CPU its activations lie in onnxruntime's arena, which is emptied at the end of each call. Without an arena each
    operator takes fresh pages from the system and gives them back: at 4,096 patches 300,000 page faults in two layers,
    instead of 60,000 in all of them.

    Args:
        path: of the graph.
        device: where it computes.
        threads: CPU threads of each operator; None is onnxruntime's own choice.
        mapped: as of `open_graph`.

    Attributes:
        session: of onnxruntime.

    Raises:
        BundleError: onnxruntime cannot load it.
        MissingDependency: onnxruntime is not installed, or its provider for the device.
    """

    def __init__(self, path: Path, device: Device, threads: int | None, mapped: MappedWeights | None = None) -> None:
        self.session: Any = open_graph(path, device, threads, arena=True, mapped=mapped)
        self._settings = onnxruntime().RunOptions()
        if device.kind == "cpu":
            self._settings.add_run_config_entry(*SHRINK)

    def __call__(self, images: Arrays) -> ImageFeatures:
        """Encode images, whose arrays have the names of the graph's inputs."""
        first, *others = self.session.run(None, dict(images), self._settings)
        return ImageFeatures(first, tuple(others))
