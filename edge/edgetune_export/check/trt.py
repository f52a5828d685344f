"""A TensorRT bundle's graphs in onnxruntime on the CPU: the same operators and numbers where no engine can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edgetune_export.check.exact import WATCH, block_states
from edgetune_runtime.backends import Arrays, Backend, Float, ImageFeatures, Int, ModelShape
from edgetune_runtime.backends.trt.frames import encoder_calls


class TrtDecoder:
    """A decoder in TensorRT's grammar, with a cache of fixed length.

    Args:
        path: the graph, as it ships or from `for_every_step`.

    Attributes:
        half: whether it computes in float16.
    """

    def __init__(self, path: Path) -> None:
        self._session = _open(path)
        self._outputs = [node.name for node in self._session.get_outputs()]
        inputs = {node.name: node for node in self._session.get_inputs()}
        self.caches = {name: node for name, node in inputs.items() if name.startswith("past_key_values.")}
        self.deepstack = sorted(name for name in inputs if name.startswith("deepstack_embeds."))
        self._watches = WATCH in inputs
        self.half = inputs["inputs_embeds"].type == "tensor(float16)"
        self._dtype = np.float16 if self.half else np.float32
        # No cache is cleared between sequences, as on a device.
        self.past = {name: np.zeros(node.shape, self._dtype) for name, node in self.caches.items()}
        self._length = 0

    def reset(self, length: int) -> None:
        """Begin a sequence: old rows are never seen."""
        self._length = 0

    def read(self, states: Float, positions: Int, deepstack: Sequence[Float], watch: Int) -> tuple[Float, Float]:
        """Append tokens [S, H]; returns the logits [.., V] that the graph gives, and the watched tokens' states."""
        wide = states[None].astype(self._dtype)
        rows = np.arange(self._length, self._length + len(states))
        feeds = {"inputs_embeds": wide, "position_ids": positions[:, None], "cache_position": rows, **self.past}
        for number, name in enumerate(self.deepstack):
            feeds[name] = deepstack[number][None].astype(self._dtype) if deepstack else np.zeros_like(wide)
        if self._watches:
            feeds[WATCH] = watch
        given = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        self.past = {name: given[name.replace("past_key_values", "present")] for name in self.past}
        self._length += len(states)
        return given["logits"][0], block_states(given)


class OnnxTrtBackend(Backend):
    """Runs the graphs that TensorRT eats; export makes it from their files, so it claims no format.

    Args:
        vision: vision encoder of one frame.
        embeddings: the token table, a .npy file.
        decoder: decoder with a cache of fixed length.
    """

    def __init__(self, *, vision: Path, embeddings: Path, decoder: Path) -> None:
        self._vision, self._decoder = _open(vision), TrtDecoder(decoder)
        self._table = np.load(embeddings, mmap_mode="r")
        caches = [node.shape for name, node in self._decoder.caches.items() if name.endswith(".key")]
        super().__init__(
            ModelShape(
                hidden=self._table.shape[1],
                vocabulary=self._table.shape[0],
                deepstack=len(self._decoder.deepstack),
                layers=len(caches),
                kv_heads=caches[0][1],
                head_dim=caches[0][-1],
            )
        )

    def encode_images_impl(self, images: Arrays) -> ImageFeatures:
        """Run the vision encoder."""
        parts = [self._vision.run(None, dict(call)) for call in encoder_calls(images)]
        first, *others = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return ImageFeatures(first, tuple(others))

    def embed_impl(self, token_ids: Int) -> Float:
        """Look up token embeddings."""
        rows: Float = self._table[token_ids].astype(np.float32)
        return rows

    def reserve_impl(self, length: int) -> None:
        """Begin a sequence."""
        self._decoder.reset(length)

    def forward_impl(self, embeddings: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens and return the last one's logits."""
        logits, _ = self._decoder.read(embeddings, positions, deepstack, np.empty(0, np.int64))
        last: Float = logits[-1]
        return last


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Past this level onnxruntime makes MatMulNBits of INT4 DequantizeLinear and rounds activations to int8.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(path), options)
