"""The vision encoder under onnxruntime, with memory that is its own for the time of one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune_runtime.backends.onnx.graphs import onnxruntime, open_graph, require_input
from edgetune_runtime.backends.onnx.mapped import MappedWeights
from edgetune_runtime.backends.values import Arrays, Device, ImageFeatures

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
        pixels: values of a row of `pixel_values`, None where rows are no flat patches.
        raw: whether `pixel_values` are uint8 as in the picture, which the graph itself normalises.

    Raises:
        BundleError: onnxruntime cannot load it, or it takes no pixels.
        MissingDependency: onnxruntime is not installed, or its provider for the device.
    """

    def __init__(self, path: Path, device: Device, threads: int | None, mapped: MappedWeights | None = None) -> None:
        self._session: Any = open_graph(path, device, threads, arena=True, mapped=mapped)
        pixels = require_input(self._session, "pixel_values", path)
        shape = pixels.shape
        self.pixels: int | None = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
        self.raw: bool = pixels.type == "tensor(uint8)"
        self._settings = onnxruntime().RunOptions()
        if device.kind == "cpu":
            self._settings.add_run_config_entry(*SHRINK)

    def __call__(self, images: Arrays) -> ImageFeatures:
        """Encode images, whose arrays have the names of the graph's inputs."""
        first, *others = self._session.run(None, dict(images), self._settings)
        return ImageFeatures(first, tuple(others))
