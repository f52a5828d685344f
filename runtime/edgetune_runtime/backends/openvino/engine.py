"""The engine "openvino": pictures are encoded by OpenVINO, answers are written by onnxruntime.

A picture is most of an answer's time on a CPU, and half of a large picture's is attention, which onnxruntime computes
in float32. OpenVINO computes in bfloat16 where the CPU multiplies it (AMX, AVX-512 BF16) and in float32 elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune_runtime.backends.onnx.mapped import MappedWeights
from edgetune_runtime.backends.onnx.packed import PackedBackend
from edgetune_runtime.backends.values import Arrays, Device, ImageFeatures
from edgetune_runtime.errors import BundleError, InputError, MissingDependency, install_command
from edgetune_runtime.quant.layouts import LAYOUTS

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle


class OpenvinoEncoder:
    """vision_encoder.onnx in OpenVINO, on the CPU.

    Args:
        path: of the graph, of standard operators.
        threads: of OpenVINO; None is its own choice.

    Attributes:
        pixels: values of a row of `pixel_values`, None where rows are no flat patches.
        raw: whether `pixel_values` are uint8 as in the picture, which the graph itself normalises.

    Raises:
        BundleError: OpenVINO cannot load the graph.
        MissingDependency: OpenVINO is not installed.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "openvino is not installed", hint=install_command("openvino", "edgetune-runtime")
            ) from error
        if not path.is_file():
            raise BundleError(f"{path}: the model file is missing")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            why = " ".join(str(error).split())[-300:]
            raise BundleError(
                f"{path}: OpenVINO {openvino.__version__.split('-')[0]} cannot load it: {why}",
                hint="export with --target openvino, which writes the vision encoder in standard operators",
            ) from error
        self._request = model.create_infer_request()
        self._outputs = [port.any_name for port in model.outputs]
        pixels = model.input("pixel_values")
        self.raw: bool = pixels.element_type == openvino.Type.u8
        shape = pixels.partial_shape
        flat = len(shape) == 2 and shape[1].is_static
        self.pixels: int | None = shape[1].get_length() if flat else None

    def __call__(self, images: Arrays) -> ImageFeatures:
        """Encode images, whose arrays have the names of the graph's inputs."""
        found = self._request.infer(dict(images), share_inputs=True)
        first, *others = (np.array(found[name]) for name in self._outputs)  # the request's memory is used again
        return ImageFeatures(first, tuple(others))


class OpenvinoBackend(PackedBackend):
    """Runs bundles that were exported for it (`--target openvino`) on the CPU."""

    formats = ("onnx", *LAYOUTS)

    @staticmethod
    def open_encoder(path: Path, device: Device, threads: int | None, mapped: MappedWeights) -> OpenvinoEncoder:
        """Open vision_encoder.onnx in OpenVINO, which maps its weights itself."""
        return OpenvinoEncoder(path, threads)

    @classmethod
    def load(cls, bundle: Bundle, *, device: str, threads: int | None) -> OpenvinoBackend:
        """Load a bundle with graphs.

        Raises:
            InputError: a device other than the CPU.
            BundleError: OpenVINO cannot load the vision encoder, onnxruntime another graph, or as `PackedBackend`.
            MissingDependency: OpenVINO, onnxruntime or safetensors is not installed.
        """
        if Device.parse(device).kind != "cpu":
            raise InputError(f"the engine openvino computes on the CPU, not on {device}", hint="leave the device out")
        loaded = super().load(bundle, device=device, threads=threads)
        assert isinstance(loaded, cls)
        return loaded
