"""The ONNX backend: onnxruntime with past and present bound to one buffer, so that a step copies no cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends import Float, ImageFeatures, Int
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, InputError, MissingDependency

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise MissingDependency(
        "onnxruntime is not installed", hint='pip install "edgetune-runtime[onnx]" (or [onnx-gpu] for CUDA)'
    ) from error

Array = npt.NDArray[Any]

_CACHE_STEP = 256
"""KV buffers grow in steps of this many tokens, so that prompts of similar length share one allocation."""

_DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


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
    ) -> None:
        self._device = device
        self._vision = _open(vision, device, threads)
        self._embed = _open(embed, "cpu", threads)  # a table look-up: not worth a trip to the GPU
        self._decoder = _open(decoder, device, threads, weights)
        inputs = {node.name: node for node in self._decoder.get_inputs()}
        self._deepstack = sorted(name for name in inputs if name.startswith("deepstack_embeds."))
        self._caches = [name for name in inputs if name.startswith("past_key_values.")]
        first = inputs[self._caches[0]]
        self._cache_shape = (1, int(first.shape[1]), int(first.shape[3]))  # batch, KV heads, head dimension
        self._cache_dtype = _DTYPES[first.type]
        self._binding = self._decoder.io_binding()
        vocabulary = int(self._decoder.get_outputs()[0].shape[2])
        self._logits = np.empty((1, 1, vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        self._buffers: list[Any] = []
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
        """Empty the cache, and make a larger one when `length` tokens do not fit.

        Old contents need no clearing: the attention mask's length says how much of the buffer is read.
        """
        self._length = 0
        if length <= self._capacity:
            return
        self._capacity = -(-length // _CACHE_STEP) * _CACHE_STEP
        batch, heads, size = self._cache_shape
        shape = (batch, heads, self._capacity, size)
        self._buffers = []
        for name in self._caches:
            buffer = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._cache_dtype), self._device, 0)
            self._buffers.append(buffer)
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)

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
        self._decoder.run_with_iobinding(self._binding)
        logits: Float = self._logits[0, 0]
        return logits


def _open(path: Path, device: str, threads: int | None, weights: Mapping[str, Array] | None = None) -> Any:
    """Open one graph."""
    if not path.is_file():
        raise BundleError(f"{path}: the model file is missing")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: the rest speaks of onnxruntime's own optimiser
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
