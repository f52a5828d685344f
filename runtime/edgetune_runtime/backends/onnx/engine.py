"""The ONNX backend: onnxruntime with inputs, outputs and the KV cache bound to memory that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends import Float, ImageFeatures, Int
from edgetune_runtime.backends.onnx.cache import make_cache
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, InputError, MissingDependency

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise MissingDependency(
        "onnxruntime is not installed", hint='pip install "edgetune-runtime[onnx]" (or [onnx-gpu] for CUDA)'
    ) from error

Array = npt.NDArray[Any]

INT8_ACTIVATIONS = 4
"""Accuracy level at which products with 4- and 8-bit weights round their input to int8 by block, the fast path."""


def load(
    bundle: Bundle, *, device: str = "cpu", threads: int | None = None, weights: Mapping[str, Array] | None = None
) -> OnnxBackend:
    """Load an "onnx" bundle, or another one that has its graphs and the `weights` that its decoder's graph leaves out.

    Raises:
        InputError: a float32 bundle on CUDA.
        BundleError: onnxruntime cannot load a graph.
        MissingDependency: device "cuda" without onnxruntime's CUDA provider.
    """
    if device == "cuda" and not bundle.half:
        # CUDA's GroupQueryAttention is float16 only. In float32 onnxruntime moves it to the CPU, where the cache is no
        # longer one buffer: on an H200 every answer was right for one token and wrong from then on.
        raise InputError(
            f"{bundle.folder}: computes in float32, but attention on CUDA needs float16",
            hint="export with --target cuda",
        )
    files = bundle.files
    return OnnxBackend(
        vision=files["vision"],
        embed=files["embed"],
        decoder=files["decoder"],
        device=device,
        threads=threads,
        weights=weights,
        accuracy_level=bundle.manifest["result"]["bundle"].get("accuracy_level", INT8_ACTIVATIONS),
    )


class OnnxBackend:
    """Implements `edgetune_runtime.backends.Backend` on onnxruntime.

    Args:
        vision: path of vision_encoder.onnx.
        embed: path of embed_tokens.onnx.
        decoder: path of decoder_model_merged.onnx.
        device: "cpu" or "cuda".
        threads: CPU threads of each operator; None is onnxruntime's own choice, one a physical core.
        weights: values of those of the decoder's weights that its graph leaves out, by name.
        accuracy_level: of products whose weights the graph dequantizes with standard operators; 0 leaves activations
            alone. Products of onnxruntime's own kind (MatMulNBits) have their level in the graph.

    Raises:
        BundleError: onnxruntime cannot load a graph.
        MissingDependency: device "cuda" without onnxruntime's CUDA provider.
    """

    def __init__(
        self,
        *,
        vision: Path,
        embed: Path,
        decoder: Path,
        device: str = "cpu",
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
        accuracy_level: int = INT8_ACTIVATIONS,
    ) -> None:
        self._vision = _open(vision, device, threads)
        self._embed = _open(embed, "cpu", threads)  # a table look-up: not worth a trip to the GPU
        self._decoder = _open(decoder, device, threads, weights, accuracy_level)
        names = [node.name for node in self._decoder.get_inputs()]
        self._deepstack = sorted(name for name in names if name.startswith("deepstack_embeds."))
        self._binding = self._decoder.io_binding()
        vocabulary = int(self._decoder.get_outputs()[0].shape[2])
        self._logits = np.empty((1, 1, vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        self._cache = make_cache(self._decoder, self._binding, device)
        self._capacity = 0
        self._length = 0

    def encode_images(self, pixel_values: Float, grids: Int) -> ImageFeatures:
        """Run the vision encoder."""
        first, *others = self._vision.run(None, {"pixel_values": pixel_values, "image_grid_thw": grids})
        return ImageFeatures(first, tuple(others))

    def embed(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        embeddings: Float = self._embed.run(None, {"input_ids": token_ids[None]})[0][0]
        return embeddings

    def reserve(self, length: int) -> None:
        """Empty the cache and make room for `length` tokens."""
        self._length = 0
        self._capacity = length
        self._cache.reserve(length)

    def forward(self, embeddings: Float, positions: Int, deepstack: Sequence[Float] = ()) -> Float:
        """Append tokens and return the last one's logits."""
        count = len(embeddings)
        if self._length + count > self._capacity:
            raise InputError(f"{self._length + count} tokens in a cache of {self._capacity}", hint="reserve more")
        self._length += count
        bind = self._binding.bind_cpu_input
        bind("inputs_embeds", np.ascontiguousarray(embeddings[None]))
        bind("position_ids", np.ascontiguousarray(positions[:, None]))
        bind("attention_mask", np.ones((1, self._length), np.int64))
        for number, name in enumerate(self._deepstack):
            bind(name, np.ascontiguousarray(deepstack[number][None] if deepstack else np.zeros_like(embeddings[None])))
        self._cache.before()
        self._decoder.run_with_iobinding(self._binding)
        self._cache.after()
        logits: Float = self._logits[0, 0]
        return logits


def _open(
    path: Path,
    device: str,
    threads: int | None,
    weights: Mapping[str, Array] | None = None,
    accuracy_level: int = INT8_ACTIVATIONS,
) -> Any:
    """Open one graph."""
    if not path.is_file():
        raise BundleError(f"{path}: the model file is missing")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: the rest speaks of onnxruntime's own optimiser
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    if threads is not None:
        options.intra_op_num_threads = threads
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    missing = MissingDependency(
        f"onnxruntime {ort.__version__} cannot run on {device}: its {provider} is not there",
        hint='pip uninstall onnxruntime, then pip install "edgetune-runtime[onnx-gpu]", with its CUDA libraries',
    )
    if provider not in ort.get_available_providers():
        raise missing
    try:
        session = ort.InferenceSession(
            str(path), options, providers=list(dict.fromkeys((provider, "CPUExecutionProvider")))
        )
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise BundleError(f"{path}: onnxruntime {ort.__version__} cannot load it: {str(error)[:300]}") from error
    if (
        provider not in session.get_providers()
    ):  # it falls back to the CPU with a warning when CUDA's libraries are missing
        raise missing
    return session
